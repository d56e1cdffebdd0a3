"""Finds a network and an input size within a latency budget: trains, quantizes and measures each candidate."""

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
"""Default candidates: networks that keep their accuracy in int8 and whose pretrained weights come with a package."""


@dataclass(frozen=True)
class SearchCandidate:
    """A network and the size of its square input: width and height in pixels."""

    backbone: str
    size: int

    @property
    def name(self) -> str:
        """Name of the candidate in file names. It consists of letters, digits and hyphens."""
        plain = "".join(char if char.isalnum() else "-" for char in self.backbone.lower())
        return f"{plain.strip('-')}-{self.size}"


@dataclass(frozen=True)
class SearchResult:
    """Measurements of a candidate.

    Attributes:
        candidate: the candidate.
        accuracy: accuracy of the candidate's int8 model on the test images, 0 to 1.
        images: number of test images.
        p50_ms, p95_ms: median and 95th percentile of the inference latency on the target, in milliseconds.
        model_mb: size of the candidate's model file, in MB.
        digest: digest of the candidate's bundle.
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
    """Result of a search.

    Attributes:
        found: results of the measured candidates, highest accuracy first.
        failed: candidates that could not be converted or measured, each with the reason.
        report: benchmark report of all candidates; None if none could be converted.
    """

    found: tuple[SearchResult, ...]
    failed: tuple[tuple[SearchCandidate, str], ...]
    report: Report | None


Measure = Callable[[Sequence[Path]], Report]
"""Function that measures bundles on the target and returns one report for all of them."""


class _SearchState(msgspec.Struct, frozen=True):
    """Parameters of a search. They are stored in the file `search.json` of its folder."""

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
    """Train, quantize and measure each candidate. Steps that have already been done are skipped.

    Args:
        data: the images, given as for `edgeloop train`.
        out: folder for the runs, the bundles and the measurements. A search that was started there is resumed.
        candidates: the candidates, in the order in which they are trained.
        measure: measures bundles on the target.
        target: name of the target.
        seed: random seed for training and the split.
        key: SSH key with which the bundles are signed, for targets that require signatures; None for no signature.
        console: console that shows the progress.

    Raises:
        DataError: the images cannot be used for training, or have changed since the search was started.
        ConfigError: the folder belongs to another search.
    """
    _check_state(out, _SearchState(str(data.absolute()), seed, target))
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
                raise DataError(f"{data}: its images changed since {out} was started; give another --out")
            bundles[candidate] = _converted(folder, candidate, key, console)
        except GateError as error:
            failed.append((candidate, str(error)))
            console.print(f"not converted: {error}", style="yellow", markup=False)
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
    """Return the fastest candidate within the budget whose accuracy is not significantly below the best accuracy.

    The best accuracy is the highest one within the budget. The accuracy of the returned candidate is not below the 95 %
    Wilson interval of the best accuracy. Return None if no candidate is within the budget.

    Args:
        found: results of one search, measured on the same images.
        budget_ms: maximum median latency, in milliseconds.
    """
    within = [one for one in found if one.p50_ms <= budget_ms]
    if not within:
        return None
    best = max(within, key=lambda one: (one.accuracy, -one.p50_ms))
    lowest, _ = wilson_interval(best.accuracy, best.images)
    return min((one for one in within if one.accuracy >= lowest), key=lambda one: one.p50_ms)


def train_command(data: Path, one: SearchResult) -> str:
    """Return the `edgeloop train` command that trains a candidate completely, for the user to copy."""
    options = ["--backbone", one.candidate.backbone, "--image-size", str(one.candidate.size)]
    return shlex.join(["edgeloop", "train", str(data), "--out", f"runs/{one.candidate.name}", *options])


def _check_state(out: Path, state: _SearchState) -> None:
    """Check that a folder belongs to this search. Create the folder if it does not exist.

    Raises:
        ConfigError: the folder belongs to another search, or contains files that no search wrote.
    """
    path = out / "search.json"
    if path.exists():
        try:
            before = msgspec.json.decode(path.read_bytes(), type=_SearchState)
        except msgspec.MsgspecError as error:
            raise ConfigError(f"{path}: not written by a search: {error}; give another --out") from error
        if before != state:
            raise ConfigError(
                f"{out}: started with {before.data}, seed {before.seed}, on {before.target}; give another --out"
            )
        return
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out}: not empty and not written by a search; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(msgspec.json.encode(state))


def _trained(data: Path, run: Path, candidate: SearchCandidate, seed: int, console: Console) -> str:
    """Train a head on frozen features, unless the run already exists. Return the fingerprint of the run's images."""
    from converter.run_reader import open_run
    from trainer.pipeline import train
    from trainer.training.checkpoint import unfinished_path
    from trainer.training.recipe import Recipe

    if not run.exists():
        recipe = Recipe(backbone=candidate.backbone, image_size=candidate.size, fine_tune="none", seed=seed)
        train(data, run, recipe, console=console, resume=unfinished_path(run).exists())
    return open_run(run).fingerprint


def _converted(folder: Path, candidate: SearchCandidate, key: Path | None, console: Console) -> Bundle:
    from converter.pipeline import convert

    path = folder / f"{candidate.name}-1.edgeloop"
    if not path.exists():
        convert(folder / "run", path, console=console, key=key)
    return open_bundle(path)


def _measured(path: Path, bundles: Sequence[Bundle], measure: Measure) -> Report:
    """Return the saved report if it is complete and contains these bundles. Otherwise measure them and save it."""
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
    """Merge several reports of the same machine into one.

    Raises:
        EdgeloopError: there are no reports.
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
