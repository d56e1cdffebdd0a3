"""Retrains a run with labelled frames.

Makes the data set, trains, converts to int8, compares the new model with the current one, and promotes it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from converter.gate import GateLimits
from converter.packaging.pack import parse_name
from converter.pipeline import convert
from edge_agent.atomic_files import replacing
from edge_agent.errors import DataError, GateError
from trainer.pipeline import Reading, train
from trainer.run_writer import read_photos, refuse_existing
from trainer.training.recipe import Recipe

from .comparison import MAX_CLASS_DROP, MAX_DROP, Comparison, PairedResults, compare
from .dataset_version import LIST, Version, make_version
from .report import render

VERDICT, PAGE = "promotion.json", "promotion.html"


@dataclass(frozen=True)
class Terms:
    """Limits for promoting the next model.

    Attributes:
        max_drop, max_class_drop: maximum losses on the frozen test split, in percentage points; see `.comparison`.
        limits: limits of the gate that checks the conversion to int8, as in `edgeloop convert`.
    """

    max_drop: float = MAX_DROP
    max_class_drop: float = MAX_CLASS_DROP
    limits: GateLimits = field(default_factory=GateLimits)


@dataclass(frozen=True, eq=False)
class Retrained:
    """Result of a retraining.

    Attributes:
        run: the new run.
        version: data set of the new run.
        comparison: comparison of champion and challenger; None if the new model failed the gate of the conversion.
        refusals: reasons why the challenger was not promoted; empty if it was promoted.
        bundle: path of the new bundle; None if the challenger was not promoted.
    """

    run: Path
    version: Version
    comparison: Comparison | None
    refusals: tuple[str, ...]
    bundle: Path | None


def retrain(
    run: Path,
    captures: Path,
    out: Path,
    *,
    bundle: Path,
    console: Console,
    champion: Path | None = None,
    none_class: str | None = None,
    epochs: int | None = None,
    fine_tune: str | None = None,
    terms: Terms | None = None,
    key: Path | None = None,
    cache: Path | None = None,
    resume: bool = False,
) -> Retrained:
    """Continue the training of a run's network with labelled frames. Promote the new model if it is not worse.

    Args:
        run: the old run.
        captures: folder of reviewed captures.
        out: directory of the new run; it must not exist. The data set is created next to it, in a folder with the same
            name and the suffix ``-images``.
        bundle: path of the new bundle; its file name must have the form NAME-VERSION.edgeloop. It is written only if
            the model is promoted.
        console: console that shows progress and messages.
        champion: the current bundle on the devices. If None, a bundle is converted from the old run for the comparison.
        none_class: name of a class for the frames that show none of the classes; if None, such frames are not used.
        epochs: number of fine-tuning epochs; if None, as in the old run.
        fine_tune: part of the backbone to fine-tune; if None, as in the old run.
        terms: limits for promoting the model; the defaults if None.
        key: SSH key with which the bundle is signed; it is not signed if None.
        cache: folder for the cache of preprocessed images.
        resume: resume an interrupted training of ``out``.

    Raises:
        DataError: there are no new labels, a run or its images have changed, or ``out`` exists.
        ConfigError: the bundle's name is invalid.
    """
    parse_name(bundle)
    terms = terms or Terms()
    refuse_existing(out)
    recipe = _recipe(run, epochs=epochs, fine_tune=fine_tune)
    images = out.with_name(f"{out.name}-images")
    version = _version(run, captures, images, none_class, console, resume=resume)
    for note in version.notes:
        console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)
    added = ", ".join(f"{count} {label}" for label, count in version.added.items())
    console.print(f"labelled frames added: {added}", markup=False, highlight=False, soft_wrap=True)
    train(images / LIST, out, recipe, console=console, reading=Reading(split_from=run, cache=cache), resume=resume)
    with tempfile.TemporaryDirectory(prefix="edgeloop-retrain-") as scratch:
        work = Path(scratch)
        challenger = work / bundle.name
        comparison, refusals = None, []
        try:
            convert(out, challenger, console=console, limits=terms.limits, key=key)
        except GateError as error:
            refusals.append(f"int8: {error}")
        else:
            if champion is None:
                champion = work / "champion-0.edgeloop"
                # The devices already run this model, whatever it lost in int8.
                convert(run, champion, console=console, limits=_NO_LIMITS)
            comparison = _compare(champion, challenger, run, out, images, console)
            refusals += comparison.refusals(max_drop=terms.max_drop, max_class_drop=terms.max_class_drop)
        _record(out, version, comparison, refusals, bundle)
        if not refusals:
            bundle.parent.mkdir(parents=True, exist_ok=True)
            with replacing(bundle) as file, challenger.open("rb") as source:
                shutil.copyfileobj(source, file)
    return Retrained(out, version, comparison, tuple(refusals), None if refusals else bundle)


_NO_LIMITS = GateLimits(
    max_drop=100,
    max_class_drop=100,
    allowed=frozenset({"drop", "class-drop", "agreement", "constant", "slow"}),
)


def _recipe(run: Path, *, epochs: int | None, fine_tune: str | None) -> Recipe:
    """Return the recipe of the old run, changed so that training starts with the weights of the old run's network."""
    try:
        arguments = json.loads((run / "run.json").read_bytes())["arguments"]
        recipe = msgspec.convert(arguments, Recipe)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{run}: not a run to continue from ({error}); give a directory that `edgeloop train` wrote"
        ) from error
    if not (run / "model.keras").is_file():
        raise DataError(
            f"{run}: its model is a SavedModel, which cannot be trained further; train a new run with the new images"
        )
    changed: dict[str, Any] = {"weights": str(run.resolve())}
    if epochs is not None:
        changed["epochs"] = epochs
    if fine_tune is not None:
        changed["fine_tune"] = fine_tune
    return replace(recipe, **changed)


def _version(
    run: Path, captures: Path, folder: Path, none_class: str | None, console: Console, *, resume: bool
) -> Version:
    if resume and (folder / LIST).is_file():
        return Version(folder, {}, (), ("resuming with the existing data set",))
    return make_version(run, captures, folder, none_class=none_class, console=console)


def _compare(champion: Path, challenger: Path, run: Path, out: Path, images: Path, console: Console) -> Comparison:
    _, before = read_photos(run)
    _, now = read_photos(out)
    frozen = {photo.sha256 for photo in before if photo.split == "test"}
    old = {photo.sha256 for photo in before}
    tested = [photo for photo in now if photo.split == "test"]
    return compare(
        champion,
        challenger,
        (images, [photo for photo in tested if photo.sha256 in frozen]),
        (images, [photo for photo in tested if photo.sha256 not in old]),
        console=console,
    )


def _record(out: Path, version: Version, comparison: Comparison | None, refusals: Sequence[str], bundle: Path) -> None:
    """Write the verdict into the directory of the new run, as a JSON file and as an HTML report."""
    verdict = {
        "format": 1,
        "decided": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "promoted": not refusals,
        "refusals": list(refusals),
        "bundle": None if refusals else str(bundle.resolve()),
        "pictures": str(version.folder.resolve()),
        "added": version.added,
        "frozen": _figures(comparison.frozen if comparison else None),
        "new": _figures(comparison.new if comparison else None),
    }
    with replacing(out / PAGE) as file:
        file.write(render(out.name, version, comparison, refusals).encode())
    with replacing(out / VERDICT) as file:
        file.write(json.dumps(verdict, indent=2, ensure_ascii=False).encode() + b"\n")


def _figures(match: PairedResults | None) -> dict[str, Any] | None:
    if match is None:
        return None
    return {
        "pictures": len(match.photos),
        "champion": {"accuracy": match.champion.accuracy, "recall": match.champion.recall()},
        "challenger": {"accuracy": match.challenger.accuracy, "recall": match.challenger.recall()},
        "gained": [match.photos[place].sha256 for place in match.gained],
        "lost": [match.photos[place].sha256 for place in match.lost],
    }
