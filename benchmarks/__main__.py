"""Runs all benchmarks and writes every figure and its target to benchmarks/results.md. `make bench` starts it.

    python -m benchmarks [PART...] [--work .bench] [--again]

Each part is a separate program that can also be run alone. PART selects single parts. Before a part starts, its inputs
(images, a run, bundles, the environment of the other runtimes) are created in the work folder, unless they exist. The
results of finished parts are also kept there, so that an interrupted command can be resumed.

All parts together take some hours. Do not use the machine during that time.
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


# Part -> (title, program, function that returns the arguments of the program). The fastest parts come first.
PARTS: dict[str, tuple[str, str, Callable[[Path], Sequence[object]]]] = {
    "preprocess": ("Preprocessing a frame", "preprocess", lambda _work: []),
    "push": ("A push over a link of 1 MB/s", "push", of(LITE0)),
    "bench": ("`edgeloop bench` against LiteRT's own benchmark", "bench", of(LITE0)),
    "convert": (
        "int8 against float32, EfficientNet-Lite0",
        "int8",
        lambda work: [inputs.run(work, LITE0)],
    ),
    "ingest": ("Reading images", "ingest", lambda _work: []),
    "throughput": ("Training steps", "train_throughput", lambda _work: []),
    "peers-lite0": (
        "Latency from frame to label, compared with other runtimes, EfficientNet-Lite0",
        "peers",
        lambda work: [inputs.bundle(work, LITE0), "--peers", work / "peers"],
    ),
    "peers-mobilenet": (
        "Latency from frame to label, compared with other runtimes, MobileNetV2",
        "peers",
        lambda work: [inputs.bundle(work, MOBILENET), "--peers", work / "peers"],
    ),
    "agent-lite0": (
        "The agent compared with the bare interpreter, EfficientNet-Lite0",
        "agent",
        lambda work: [inputs.bundle(work, LITE0), "--frames", 200_000],
    ),
    "agent-mobilenet": ("The agent compared with the bare interpreter, MobileNetV2", "agent", of(MOBILENET)),
    "serve": ("The HTTP service", "serve", of(LITE0)),
    "review": ("The review page", "review", lambda work: [inputs.run(work, LITE0)]),
    "label-budget": (
        "Labelling proposed frames, compared with random frames",
        "label_budget",
        lambda work: [inputs.stamps(work), "--plot", work / "label_budget.png"],
    ),
    "shortlist": ("Ranking a million captures", "shortlist", lambda work: [inputs.images(work)]),
    "memory": ("Memory used by training", "train_memory", lambda _work: []),
    "keras-guide": (
        "Training compared with the recipe of the Keras guide",
        "keras_guide",
        lambda work: [inputs.stamps(work)],
    ),
    "few-pictures": ("Training with few images", "few_pictures", lambda work: [inputs.stamps(work)]),
    "rollout": ("A rollout to 200 devices", "rollout", of(LITE0)),
    "fit": ("Accuracy by fit", "fit", lambda work: [inputs.stamps(work)]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"parts to run; by default all: {', '.join(PARTS)}")
    parser.add_argument("--work", type=Path, default=Path(".bench"))
    parser.add_argument("--again", action="store_true", help="also run finished parts again")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; expected some of {', '.join(PARTS)}")
    arguments.work.mkdir(exist_ok=True)
    failed = []
    for part in arguments.parts or PARTS:
        if (arguments.work / f"{part}.json").exists() and not arguments.again:
            print(f"{part}: already measured; use --again to repeat it")
        elif not measure(part, arguments.work.resolve()):
            failed.append(part)
        write_results(arguments.work)
    print(f"written to {RESULTS}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def measure(part: str, work: Path) -> bool:
    """Run one part in a separate process. Return True if it succeeds; only then are its figures used."""
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
    """Write the results of all finished parts: first a table of the figures that have a target, then every figure."""
    machine = describe()
    finished = {
        part: json.loads((work / f"{part}.json").read_text()) for part in PARTS if (work / f"{part}.json").exists()
    }
    found = {part: read_figures(work / f"{part}.figures") for part in finished}
    lines = [
        "# Results",
        "",
        f"Written by `make bench`. {machine.cpu or machine.model}, {machine.cores} cores, {machine.memory_mb:.0f} MB,",
        f"{machine.os}, Python {machine.python}, edgeloop {machine.agent}. All figures of a part come from one run on",
        "one machine; ratios are more comparable with other machines than times.",
        "",
        "## Targets",
        "",
        "| figure | measured | target | |",
        "| --- | --- | --- | --- |",
    ]
    for part, figures in found.items():
        lines += [row(figure, f"{part}: ") for figure in figures if figure.target]
    for part, figures in found.items():
        title, program, _ = PARTS[part]
        lines += ["", f"## {title}", ""]
        lines += [f"`python -m benchmarks {part}` (benchmarks/{program}.py), {finished[part]['date']}", ""]
        lines += ["| figure | measured |", "| --- | --- |"]
        lines += [f"| {figure.name} | {figure.text} |" for figure in figures]
    if missing := [part for part in PARTS if part not in finished]:
        lines += ["", f"Not measured in this run: {', '.join(missing)}."]
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


def row(figure: Figure, before: str) -> str:
    return f"| {before}{figure.name} | {figure.text} | {figure.target} | {'reached' if figure.reached else 'missed'} |"


if __name__ == "__main__":
    main()
