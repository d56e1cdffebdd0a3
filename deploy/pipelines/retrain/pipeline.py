"""A run and labelled frames to a better run, read top to bottom: data set, training, int8, the duel, the verdict."""

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

from converter.convert import convert
from converter.gate import GateLimits
from converter.packaging.pack import parse_name
from edge_agent.atomic_files import replacing
from edge_agent.errors import DataError, GateError
from trainer.run_writer import read_photos, refuse_existing
from trainer.train import Reading, train
from trainer.training.recipe import Recipe

from .comparison import MAX_CLASS_DROP, MAX_DROP, Comparison, PairedResults, duel
from .dataset_version import LIST, Version, make_version
from .report import render

VERDICT, PAGE = "promotion.json", "promotion.html"


@dataclass(frozen=True)
class Terms:
    """What the next model is held to.

    Attributes:
        max_drop, max_class_drop: points it may lose on the frozen test split; see `.comparison`.
        limits: what int8 may cost it; the gate of `edgeloop convert`.
    """

    max_drop: float = MAX_DROP
    max_class_drop: float = MAX_CLASS_DROP
    limits: GateLimits = field(default_factory=GateLimits)


@dataclass(frozen=True, eq=False)
class Retrained:
    """How it went.

    Attributes:
        run: the new run.
        version: its data set.
        duel: champion against challenger; None where int8 lost too much for there to be a challenger.
        refusals: why the challenger is not promoted; empty where it is.
        bundle: where it lies; None where it is not promoted.
    """

    run: Path
    version: Version
    duel: Comparison | None
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
    """Learn what was labelled, beginning with the old network, and promote the result only where it is no worse.

    Args:
        run: the old run.
        captures: the folder that was reviewed.
        out: the new run; must not exist. Its data set is made beside it, as ``out``-images.
        bundle: the new bundle, NAME-VERSION.edgeloop; written only where it is promoted.
        console: where progress goes.
        champion: the bundle that runs now; made of the old run when None.
        none_class: class for the frames that show none of the classes.
        epochs: fine-tuning passes, where other than the old run's.
        fine_tune: how much of the backbone learns, where other than the old run's.
        terms: what the next model is held to.
        key: SSH key to sign with.
        cache: folder of prepared images.
        resume: go on with an interrupted training of ``out``.

    Raises:
        DataError: nothing to learn from, a run or images that are not what they were, ``out`` exists.
        ConfigError: a name that is none.
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
        fought, refusals = None, []
        try:
            convert(out, challenger, console=console, limits=terms.limits, key=key)
        except GateError as error:
            refusals.append(f"int8: {error}")
        else:
            if champion is None:
                champion = work / "champion-0.edgeloop"
                # It runs already, whatever int8 cost it.
                convert(run, champion, console=console, limits=_NO_LIMITS)
            fought = _duel(champion, challenger, run, out, images, console)
            refusals += fought.refusals(max_drop=terms.max_drop, max_class_drop=terms.max_class_drop)
        _record(out, version, fought, refusals, bundle)
        if not refusals:
            bundle.parent.mkdir(parents=True, exist_ok=True)
            with replacing(bundle) as file, challenger.open("rb") as made:
                shutil.copyfileobj(made, file)
    return Retrained(out, version, fought, tuple(refusals), None if refusals else bundle)


_NO_LIMITS = GateLimits(
    max_drop=100,
    max_class_drop=100,
    allowed=frozenset({"drop", "class-drop", "agreement", "constant", "slow"}),
)


def _recipe(run: Path, *, epochs: int | None, fine_tune: str | None) -> Recipe:
    """The old run's choices, beginning with its network."""
    try:
        arguments = json.loads((run / "run.json").read_bytes())["arguments"]
        recipe = msgspec.convert(arguments, Recipe)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{run}: no run to begin with ({error}); name a directory that `edgeloop train` made"
        ) from error
    if not (run / "model.keras").is_file():
        raise DataError(f"{run}: its model is a SavedModel, which cannot be learned on from; train on the new images")
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
        return Version(folder, {}, (), ("going on with the data set that was made before",))
    return make_version(run, captures, folder, none_class=none_class, console=console)


def _duel(champion: Path, challenger: Path, run: Path, out: Path, images: Path, console: Console) -> Comparison:
    _, before = read_photos(run)
    _, now = read_photos(out)
    frozen = {photo.sha256 for photo in before if photo.split == "test"}
    old = {photo.sha256 for photo in before}
    tested = [photo for photo in now if photo.split == "test"]
    return duel(
        champion,
        challenger,
        (images, [photo for photo in tested if photo.sha256 in frozen]),
        (images, [photo for photo in tested if photo.sha256 not in old]),
        console=console,
    )


def _record(out: Path, version: Version, fought: Comparison | None, refusals: Sequence[str], bundle: Path) -> None:
    """The verdict beside the new run: for programs, and as a page."""
    verdict = {
        "format": 1,
        "decided": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "promoted": not refusals,
        "refusals": list(refusals),
        "bundle": None if refusals else str(bundle.resolve()),
        "pictures": str(version.folder.resolve()),
        "added": version.added,
        "frozen": _figures(fought.frozen if fought else None),
        "new": _figures(fought.new if fought else None),
    }
    with replacing(out / PAGE) as file:
        file.write(render(out.name, version, fought, refusals).encode())
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
