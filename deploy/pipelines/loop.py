"""Runs one round of the loop: pulls captures, waits for labels, retrains, compares, and rolls out in waves.

The work folder holds the state of the loop, so that the same command resumes an interrupted round. Captures are in
`captures/`, runs and bundles in `runs/`. `loop.json` records the current run and bundle and the progress of the round.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console

from converter.packaging.pack import parse_name
from edge_agent.atomic_files import replacing
from edge_agent.errors import ConfigError, DataError, EdgeloopError, ResourceError
from trainer.active_learning.annotations import Annotations, now
from trainer.active_learning.captured_frames import find_frames
from trainer.training.checkpoint import unfinished_path

from ..fleet.inventory import Host
from ..fleet.pull import Pulled
from ..fleet.rollout import Rollout
from .retrain.pipeline import PAGE, Terms, retrain

STATE, HISTORY, CAPTURES, RUNS = "loop.json", "loop.jsonl", "captures", "runs"


class State(msgspec.Struct, forbid_unknown_fields=True):
    """State of the loop.

    Attributes:
        run, bundle: run and bundle of the current model, the champion.
        number: number of the last model whose training was started, whether it was promoted or not.
        labels: number of annotations with which model ``number`` was trained.
        learned: digest of these annotations.
        under_way: True if the training of model ``number`` was started and has not ended.
        to_push: True if the current bundle still has to be pushed to devices.
        before: run and bundle of the previous model. It becomes the current model again if a rollout is stopped.
    """

    run: str
    bundle: str
    number: int
    labels: int = 0
    learned: str = ""
    under_way: bool = False
    to_push: bool = False
    before: tuple[str, str] | None = None


@dataclass(frozen=True, eq=False)
class Round:
    """Result of one round.

    Attributes:
        did: descriptions of what was done, one sentence each.
        well: True if nothing failed.
    """

    did: tuple[str, ...]
    well: bool


@dataclass(frozen=True)
class Means:
    """The means of the loop: access to the devices, and the conditions for replacing their model.

    Attributes:
        hosts: the devices; the first one is the canary.
        pull: function that fetches the captures of all devices into a folder.
        push: function that rolls out a bundle to all devices in waves.
        terms: limits for promoting the next model.
        enough: number of new labels that is enough to start a retraining while other frames still wait for review. If
            None, the loop waits until all frames are labelled.
        none_class: see `retrain`.
        key: SSH key with which bundles are signed; they are not signed if None.
    """

    hosts: Sequence[Host]
    pull: Callable[[Path], Sequence[tuple[str, Pulled | EdgeloopError]]]
    push: Callable[[Path], Rollout]
    terms: Terms
    enough: int | None = None
    none_class: str | None = None
    key: Path | None = None


def begin(work: Path, run: Path, bundle: Path) -> None:
    """Create the work folder of a loop that starts with a run and its bundle, which the devices already have.

    Raises:
        DataError: the run or the bundle does not exist, or the loop has already been started.
        ConfigError: the bundle's version is not a whole number.
    """
    _, version = parse_name(bundle)
    if not version.isdecimal():
        raise ConfigError(f"{bundle.name}: its version is {version}; the loop needs a whole number to count up from")
    for path, what in ((run / "run.json", "run"), (bundle, "bundle")):
        if not path.is_file():
            raise DataError(f"{path}: no such {what}; give those of the model on the devices")
    if (work / STATE).exists():
        raise DataError(f"{work / STATE}: the loop was already started; leave out --run and --bundle")
    work.mkdir(parents=True, exist_ok=True)
    _keep(work, State(str(run.resolve()), str(bundle.resolve()), int(version)))


def once_round(work: Path, means: Means, console: Console) -> Round:
    """Run one round of the loop, up to the next step that needs a person.

    Raises:
        ResourceError: another process runs the loop.
        DataError: the work folder or its files cannot be used.
    """
    with _alone(work):
        did: list[str] = []
        try:
            well = _go(work, _state(work), means, did, console)
        finally:
            _note(work, did)
    return Round(tuple(did), well)


def _go(work: Path, state: State, means: Means, did: list[str], console: Console) -> bool:
    # The last call promoted a model but did not finish pushing it.
    well = _push(work, state, means, did) if state.to_push else True
    well &= _pull(work, means, did)
    captures = work / CAPTURES
    if not any(captures.rglob("*.jpg")):
        did.append("no captures yet")
        return well
    found, annotations = find_frames(captures), Annotations(captures)
    settled = {sha256: one for sha256, one in annotations.latest.items() if one.verdict != "open"}
    labels = sorted(f"{one.sha256} {one.verdict} {one.label}" for one in settled.values())
    digest = hashlib.sha256("\n".join(labels).encode()).hexdigest()
    waiting = sum(frame.sha256 not in settled for frame in found.frames)
    if waiting and (means.enough is None or len(labels) - state.labels < means.enough) and not state.under_way:
        did.append(f"{waiting} frames wait for review: edgeloop review {captures} --run {state.run}")
        return well
    if not labels or (digest == state.learned and not state.under_way):
        did.append("there are no new labels")
        return well
    return _next_model(work, state, means, did, console, (len(labels), digest)) and well


def _pull(work: Path, means: Means, did: list[str]) -> bool:
    results = means.pull(work / CAPTURES)
    fetched = sum(result.fetched for _, result in results if isinstance(result, Pulled))
    reached = sum(isinstance(result, Pulled) for _, result in results)
    did.append(f"{fetched} captures fetched from {reached} of {len(results)} devices")
    did += [str(result) for _, result in results if isinstance(result, EdgeloopError)]
    return reached == len(results)


def _next_model(
    work: Path, state: State, means: Means, did: list[str], console: Console, labels: tuple[int, str]
) -> bool:
    """Train the next model, compare it with the current one and, if it is promoted, push it."""
    name, _ = parse_name(Path(state.bundle))
    out = work / RUNS / f"{name}-{state.number}"
    resume = state.under_way and state.learned == labels[1] and unfinished_path(out).is_dir()
    if not resume:
        # Numbers are never reused, even if the training failed.
        state.number += 1
        out = work / RUNS / f"{name}-{state.number}"
        state.labels, state.learned = labels
        state.under_way = True
        (work / RUNS).mkdir(exist_ok=True)
        _keep(work, state)
    done = retrain(
        Path(state.run),
        work / CAPTURES,
        out,
        bundle=out.with_name(f"{out.name}.edgeloop"),
        champion=Path(state.bundle),
        none_class=means.none_class,
        terms=means.terms,
        key=means.key,
        resume=resume,
        console=console,
    )
    state.under_way = False
    if done.bundle is None:
        did.append(f"{out.name} was not promoted: {'; '.join(done.refusals)}; see {out / PAGE}")
        _keep(work, state)
        return False
    did.append(f"{out.name} was promoted, trained with {state.labels} annotations; see {out / PAGE}")
    state.before = state.run, state.bundle
    state.run, state.bundle, state.to_push = str(out.resolve()), str(done.bundle.resolve()), True
    _keep(work, state)
    return _push(work, state, means, did)


def _push(work: Path, state: State, means: Means, did: list[str]) -> bool:
    rollout = means.push(Path(state.bundle))
    bad = [outcome for outcome in rollout.outcomes if not outcome.healthy]
    good = len(rollout.outcomes) - len(bad)
    did.append(f"{Path(state.bundle).name} runs on {good} of {len(means.hosts)} devices")
    did += [f"{outcome.host}: {outcome.state}, {outcome.text}" for outcome in bad]
    if rollout.stopped:
        did.append(f"stopped: {rollout.stopped}")
        if state.before is not None:
            # The devices run the previous model again, so it is the champion for the next comparison.
            state.run, state.bundle = state.before
            did.append(f"{Path(state.bundle).name} remains the current model")
    # Unreachable devices get the bundle in the next round; devices that refused it or rolled it back are skipped.
    state.to_push = any(outcome.state == "unreachable" for outcome in bad) and not rollout.stopped
    _keep(work, state)
    return not bad and not rollout.stopped


def _state(work: Path) -> State:
    path = work / STATE
    try:
        return msgspec.json.decode(path.read_bytes(), type=State)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no loop was started here; give --run and --bundle for the first call") from error
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: damaged ({error}); delete it and start again with --run and --bundle") from error


def _keep(work: Path, state: State) -> None:
    with replacing(work / STATE) as file:
        file.write(msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n")


def _note(work: Path, did: Sequence[str]) -> None:
    """Append a line to the history that says what was done in this round."""
    line = {"at": now(), "did": list(did)}
    with (work / HISTORY).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Hold the lock of the work folder, so that only one process runs the loop.

    Without it, a timer could start the command again during a training run that takes hours.
    """
    try:
        handle = os.open(work / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DataError(f"{work}: {error.strerror}; give --run and --bundle for the first call") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ResourceError(f"{work}: another `edgeloop loop` is running here; wait until it ends") from error
        yield
    finally:
        os.close(handle)
