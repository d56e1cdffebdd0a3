"""Which network, at which size, fits a latency budget: quick heads, quantized, and measured where they are to run."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge_agent.atomic_files import replacing
from edge_agent.bench.report import Report, load
from edge_agent.bundle import Bundle, open_bundle
from edge_agent.errors import ConfigError, DataError, EdgeloopError, GateError
from edge_agent.inference.evaluation import wilson_interval

if TYPE_CHECKING:
    from rich.console import Console

CANDIDATES = (
    *(("efficientnet-lite0", size) for size in (96, 128, 160, 192, 224)),
    ("efficientnet-lite1", 240),
    ("efficientnet-lite2", 260),
)
"""Those whose weights come in a package; all of them keep their accuracy in int8."""


@dataclass(frozen=True)
class SearchCandidate:
    """A network and the side of its square input, pixels."""

    backbone: str
    size: int

    @property
    def name(self) -> str:
        """For files: of letters, digits and hyphens."""
        plain = "".join(char if char.isalnum() else "-" for char in self.backbone.lower())
        return f"{plain.strip('-')}-{self.size}"


@dataclass(frozen=True)
class SearchResult:
    """What became of a candidate.

    Attributes:
        candidate: which.
        accuracy: of its int8 model on the test images, 0 to 1.
        images: how many those are.
        p50_ms, p95_ms: of invoke on the target, milliseconds.
        model_mb: of its model's file.
        digest: of its bundle.
    """

    candidate: SearchCandidate
    accuracy: float
    images: int
    p50_ms: float
    p95_ms: float
    model_mb: float
    digest: str


@dataclass(frozen=True)
class Searched:
    """All that was found, best accuracy first; ``failed``: candidates without a model, and why."""

    found: tuple[SearchResult, ...]
    failed: tuple[tuple[SearchCandidate, str], ...]
    report: Report | None


Measure = Callable[[Sequence[Path]], Report]
"""Bundles to a report of all of them, on the target."""


class _Note(msgspec.Struct, frozen=True):
    """What a folder of a search was made with."""

    data: str
    seed: int
    target: str


def search(
    data: Path,
    out: Path,
    candidates: Sequence[SearchCandidate],
    *,
    measure: Measure,
    target: str,
    seed: int,
    key: Path | None,
    console: Console,
) -> Searched:
    """Train, quantize and measure each candidate. What is done already is not done again.

    Args:
        data: as `edgeloop train` takes it.
        out: folder for runs, bundles and the measurement; one from before is gone on with.
        candidates: in their order.
        measure: on the target.
        target: what it is called.
        seed: of the heads, and of the split.
        key: SSH key to sign the bundles with, for a target that takes no others.
        console: where progress goes.

    Raises:
        DataError: the images cannot be trained on, or are not those of before.
        ConfigError: the folder is of another search.
    """
    _note(out, _Note(str(data.absolute()), seed, target))
    bundles: dict[SearchCandidate, Bundle] = {}
    failed: list[tuple[SearchCandidate, str]] = []
    fingerprints: dict[str, SearchCandidate] = {}
    for number, candidate in enumerate(candidates, 1):
        console.print(f"{number}/{len(candidates)}  {candidate.backbone} at {candidate.size}", style="bold")
        folder = out / candidate.name
        folder.mkdir(exist_ok=True)
        try:
            fingerprint = _trained(data, folder / "run", candidate, seed, console)
            fingerprints.setdefault(fingerprint, candidate)
            if len(fingerprints) > 1:
                raise DataError(f"{data}: its images changed since {out} was begun; name another --out")
            bundles[candidate] = _converted(folder, candidate, key, console)
        except GateError as error:
            failed.append((candidate, str(error)))
            console.print(f"int8 lost too much: {error}", style="yellow", markup=False)
    if not bundles:
        return Searched((), tuple(failed), None)
    report = _measured(out / "bench.json", list(bundles.values()), measure)
    found = [_found(candidate, bundle, report) for candidate, bundle in bundles.items()]
    failed += [
        (candidate, "it could not be measured") for candidate, one in zip(bundles, found, strict=True) if one is None
    ]
    known = sorted((one for one in found if one is not None), key=lambda one: (-one.accuracy, one.p50_ms))
    return Searched(tuple(known), tuple(failed), report)


def recommend(found: Sequence[SearchResult], budget_ms: float) -> SearchResult | None:
    """The fastest within the budget that the test images cannot tell from the most accurate one there; None without.

    Args:
        found: of one search, so on the same images.
        budget_ms: that the median may take.
    """
    within = [one for one in found if one.p50_ms <= budget_ms]
    if not within:
        return None
    best = max(within, key=lambda one: (one.accuracy, -one.p50_ms))
    lowest, _ = wilson_interval(best.accuracy, best.images)
    return min((one for one in within if one.accuracy >= lowest), key=lambda one: one.p50_ms)


def train_command(data: Path, one: SearchResult) -> str:
    """The command that trains what was recommended, whole."""
    options = ["--backbone", one.candidate.backbone, "--image-size", str(one.candidate.size)]
    return shlex.join(["edgeloop", "train", str(data), "--out", f"runs/{one.candidate.name}", *options])


def _note(out: Path, note: _Note) -> None:
    path = out / "search.json"
    if path.exists():
        try:
            before = msgspec.json.decode(path.read_bytes(), type=_Note)
        except msgspec.MsgspecError as error:
            raise ConfigError(f"{path}: not of a search: {error}; name another --out") from error
        if before != note:
            raise ConfigError(
                f"{out}: begun with {before.data}, seed {before.seed}, on {before.target}; name another --out"
            )
        return
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out}: it is not empty, and not of a search; name another --out")
    out.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(msgspec.json.encode(note))


def _trained(data: Path, run: Path, candidate: SearchCandidate, seed: int, console: Console) -> str:
    """Train a head on frozen features, if that was not done; fingerprint of the images it learnt from."""
    from converter.run_reader import open_run
    from trainer.train import train
    from trainer.training.checkpoint import unfinished_path
    from trainer.training.recipe import Recipe

    if not run.exists():
        recipe = Recipe(backbone=candidate.backbone, image_size=candidate.size, fine_tune="none", seed=seed)
        train(data, run, recipe, console=console, resume=unfinished_path(run).exists())
    return open_run(run).fingerprint


def _converted(folder: Path, candidate: SearchCandidate, key: Path | None, console: Console) -> Bundle:
    from converter.convert import convert

    path = folder / f"{candidate.name}-1.edgeloop"
    if not path.exists():
        convert(folder / "run", path, console=console, key=key)
    return open_bundle(path)


def _measured(path: Path, bundles: Sequence[Bundle], measure: Measure) -> Report:
    """The report of before, where it holds these bundles; otherwise a new one."""
    if path.exists():
        report = load(path)
        if report.complete and {one.bundle for one in report.steady} >= {bundle.digest for bundle in bundles}:
            return report
    report = measure([Path(bundle.path) for bundle in bundles])
    report.save(path)
    return report


def _found(candidate: SearchCandidate, bundle: Bundle, report: Report) -> SearchResult | None:
    steady = next((one for one in report.steady if one.bundle == bundle.digest), None)
    metrics: Any = bundle.manifest.metrics
    subject = report.subject(bundle.digest)
    if steady is None or subject is None or metrics is None:
        return None
    return SearchResult(
        candidate,
        metrics.model.accuracy,
        metrics.images,
        steady.invoke.p50,
        steady.invoke.p95,
        subject.model_mb,
        bundle.digest,
    )


def merged(reports: Sequence[Report]) -> Report:
    """Reports of one machine as one.

    Raises:
        EdgeloopError: there is none.
    """
    if not reports:
        raise EdgeloopError("nothing was measured")
    first = reports[0]
    return msgspec.structs.replace(
        first,
        bundles=tuple(one for report in reports for one in report.bundles),
        steady=tuple(one for report in reports for one in report.steady),
        failed=tuple(one for report in reports for one in report.failed),
        complete=all(report.complete for report in reports),
    )
