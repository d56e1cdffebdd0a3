"""Every figure there is, beside what was aimed at: `make bench` writes benchmarks/results.md.

    python -m benchmarks [PART...] [--work .bench] [--again]

Each part is a program of its own that anyone can run; what it needs (images, a run, bundles, the peers' environment)
is made into the work folder first. Finished parts stay there: interrupted, the same command goes on, and with names it
measures those alone. Some hours altogether; leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from edge_agent.bench.machine import describe

from .support import inputs
from .support.figures import GATHERED, Figure, read_figures

RESULTS = Path(__file__).parent / "results.md"
LITE0, MOBILENET = "efficientnet-lite0", "mobilenet-v2"


def of(backbone: str) -> Callable[[Path], Sequence[object]]:
    return lambda work: [inputs.bundle(work, backbone)]


# What is measured, by which program and with what, quickest first.
PARTS: dict[str, tuple[str, str, Callable[[Path], Sequence[object]]]] = {
    "preprocess": ("Preparing a frame", "preprocess", lambda _work: []),
    "push": ("A push over 1 MB/s", "push", of(LITE0)),
    "bench": ("`edgeloop bench` against LiteRT's own benchmark", "bench", of(LITE0)),
    "convert": (
        "int8 against float32, EfficientNet-Lite0",
        "int8",
        lambda work: [inputs.run(work, LITE0)],
    ),
    "ingest": ("Reading images", "ingest", lambda _work: []),
    "throughput": ("Training steps", "train_throughput", lambda _work: []),
    "peers-lite0": (
        "From a frame to its label beside the peers, EfficientNet-Lite0",
        "peers",
        lambda work: [inputs.bundle(work, LITE0), "--peers", work / "peers"],
    ),
    "peers-mobilenet": (
        "From a frame to its label beside the peers, MobileNetV2",
        "peers",
        lambda work: [inputs.bundle(work, MOBILENET), "--peers", work / "peers"],
    ),
    "agent-lite0": (
        "The agent beside the bare interpreter, EfficientNet-Lite0",
        "agent",
        lambda work: [inputs.bundle(work, LITE0), "--frames", 200_000],
    ),
    "agent-mobilenet": ("The agent beside the bare interpreter, MobileNetV2", "agent", of(MOBILENET)),
    "serve": ("A model behind HTTP", "serve", of(LITE0)),
    "review": ("The review page", "review", lambda work: [inputs.run(work, LITE0)]),
    "label-budget": (
        "Labelling what is asked first, beside labelling at random",
        "label_budget",
        lambda work: [inputs.stamps(work), "--plot", work / "label_budget.png"],
    ),
    "shortlist": ("A million captures ranked", "shortlist", lambda work: [inputs.images(work)]),
    "memory": ("Memory of a training", "train_memory", lambda _work: []),
    "keras-guide": (
        "Training beside the recipe of Keras' guide",
        "keras_guide",
        lambda work: [inputs.stamps(work)],
    ),
    "few-pictures": ("Training on a handful of images", "few_pictures", lambda work: [inputs.stamps(work)]),
    "rollout": ("A roll-out to 200 devices", "rollout", of(LITE0)),
    "fit": ("Which fit recognises best", "fit", lambda work: [inputs.stamps(work)]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"all of: {', '.join(PARTS)}")
    parser.add_argument("--work", type=Path, default=Path(".bench"))
    parser.add_argument("--again", action="store_true", help="what is finished, too")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    given.work.mkdir(exist_ok=True)
    failed = []
    for part in given.parts or PARTS:
        if (given.work / f"{part}.json").exists() and not given.again:
            print(f"{part}: measured already; --again measures it again")
        elif not measure(part, given.work.resolve()):
            failed.append(part)
        write_results(given.work)
    print(f"written to {RESULTS}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def measure(part: str, work: Path) -> bool:
    """Run one part in a process of its own; its figures are kept when it ends well."""
    title, program, needs = PARTS[part]
    print(f"\n{part}: {title}", flush=True)
    figures = work / f"{part}.figures"
    figures.unlink(missing_ok=True)
    try:
        arguments = [str(argument) for argument in needs(work)]
        start = time.monotonic()
        command = [sys.executable, "-m", f"benchmarks.{program}", *arguments]
        subprocess.run(command, check=True, env={**os.environ, GATHERED: str(figures)})
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"{part}: {error}", file=sys.stderr)
        return False
    kept = {"date": datetime.now(UTC).date().isoformat(), "took_s": round(time.monotonic() - start)}
    (work / f"{part}.json").write_text(json.dumps(kept))
    return True


def write_results(work: Path) -> None:
    """What is measured so far, as a page: aims first, then every figure."""
    machine = describe()
    there = {
        part: json.loads((work / f"{part}.json").read_text()) for part in PARTS if (work / f"{part}.json").exists()
    }
    found = {part: read_figures(work / f"{part}.figures") for part in there}
    lines = [
        "# Results",
        "",
        f"Written by `make bench`. {machine.cpu or machine.model}, {machine.cores} cores, {machine.memory_mb:.0f} MB,",
        f"{machine.os}, Python {machine.python}, edgeloop {machine.agent}. Each part is one run of one program, so its",
        "ratios are of one machine in one state; times alone say little elsewhere.",
        "",
        "## What was aimed at",
        "",
        "| figure | measured | wanted | |",
        "| --- | --- | --- | --- |",
    ]
    for part, figures in found.items():
        lines += [row(figure, f"{part}: ") for figure in figures if figure.wanted]
    for part, figures in found.items():
        title, program, _ = PARTS[part]
        lines += ["", f"## {title}", ""]
        lines += [f"`python -m benchmarks {part}` (benchmarks/{program}.py), {there[part]['date']}", ""]
        lines += ["| figure | measured |", "| --- | --- |"]
        lines += [f"| {figure.name} | {figure.told} |" for figure in figures]
    if missing := [part for part in PARTS if part not in there]:
        lines += ["", f"Not measured in this run: {', '.join(missing)}."]
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


def row(figure: Figure, before: str) -> str:
    return f"| {before}{figure.name} | {figure.told} | {figure.wanted} | {'reached' if figure.reached else 'missed'} |"


if __name__ == "__main__":
    main()
