"""Once round the loop: captures come, labels are waited for, the next model is made, and goes out in waves.

What was done lies in the work folder, so that the same command goes on from there: captures are in `captures/`, runs
and bundles in `runs/`, and `loop.json` says which of them is current and how far it has got.
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
    """Where the loop is.

    Attributes:
        run, bundle: the current model, made by hand before the first round and by the loop since.
        number: of the last model that was begun, promoted or not.
        labels: decisions that it learned from.
        learned: digest of them.
        under_way: its training was begun and has not ended.
        to_push: the current bundle has yet to go to the devices.
        before: the run and the bundle before, to which a stopped roll-out goes back.
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
    """What one call did.

    Attributes:
        did: in words, a sentence each.
        well: whether nothing failed.
    """

    did: tuple[str, ...]
    well: bool


@dataclass(frozen=True)
class Means:
    """How the loop reaches the devices, and on what terms it may replace their model.

    Attributes:
        hosts: the devices, the first of them the canary.
        pull: fetch the captures of all of them into a folder.
        push: send a bundle to all of them, in waves.
        terms: what the next model is held to.
        enough: retrain once so many new labels are there, though other frames are open; None waits for all of them.
        none_class: as of `retrain`.
        key: SSH key to sign bundles with.
    """

    hosts: Sequence[Host]
    pull: Callable[[Path], Sequence[tuple[str, Pulled | EdgeloopError]]]
    push: Callable[[Path], Rollout]
    terms: Terms
    enough: int | None = None
    none_class: str | None = None
    key: Path | None = None


def begin(work: Path, run: Path, bundle: Path) -> None:
    """Make the work folder of a loop that starts from a run and the bundle made of it, which the devices have.

    Raises:
        DataError: they are not there, or the loop is begun already.
        ConfigError: the bundle's version is no number to count on from.
    """
    _, version = parse_name(bundle)
    if not version.isdecimal():
        raise ConfigError(f"{bundle.name}: its version is {version}; the loop counts on from a whole number")
    for path, what in ((run / "run.json", "run"), (bundle, "bundle")):
        if not path.is_file():
            raise DataError(f"{path}: no such {what}; name those that the devices run")
    if (work / STATE).exists():
        raise DataError(f"{work / STATE}: the loop is begun already; leave --run and --bundle out")
    work.mkdir(parents=True, exist_ok=True)
    _keep(work, State(str(run.resolve()), str(bundle.resolve()), int(version)))


def once_round(work: Path, means: Means, console: Console) -> Round:
    """Go on with the loop as far as it goes without a person.

    Raises:
        ResourceError: another process is at it.
        DataError: the folder or what lies in it cannot be used.
    """
    with _alone(work):
        did: list[str] = []
        try:
            well = _go(work, _state(work), means, did, console)
        finally:
            _note(work, did)
    return Round(tuple(did), well)


def _go(work: Path, state: State, means: Means, did: list[str], console: Console) -> bool:
    # Promoted, and then the desktop was switched off.
    well = _push(work, state, means, did) if state.to_push else True
    well &= _pull(work, means, did)
    captures = work / CAPTURES
    if not any(captures.rglob("*.jpg")):
        did.append("no captures yet")
        return well
    found, decisions = find_frames(captures), Annotations(captures)
    settled = {sha256: one for sha256, one in decisions.latest.items() if one.verdict != "open"}
    labels = sorted(f"{one.sha256} {one.verdict} {one.label}" for one in settled.values())
    digest = hashlib.sha256("\n".join(labels).encode()).hexdigest()
    waiting = sum(frame.sha256 not in settled for frame in found.frames)
    if waiting and (means.enough is None or len(labels) - state.labels < means.enough) and not state.under_way:
        did.append(f"{waiting} frames wait for review: edgeloop review {captures} --run {state.run}")
        return well
    if not labels or (digest == state.learned and not state.under_way):
        did.append("nothing new is labelled")
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
    """Train, judge and, where it is promoted, push the next model."""
    name, _ = parse_name(Path(state.bundle))
    out = work / RUNS / f"{name}-{state.number}"
    resume = state.under_way and state.learned == labels[1] and unfinished_path(out).is_dir()
    if not resume:
        # A number is never given twice, whatever became of what it was given to.
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
        did.append(f"{out.name} is not promoted: {'; '.join(done.refusals)}; see {out / PAGE}")
        _keep(work, state)
        return False
    did.append(f"{out.name} is promoted, with {state.labels} decisions; see {out / PAGE}")
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
            # The devices are back on it, and the next model has to be better than what they run.
            state.run, state.bundle = state.before
            did.append(f"{Path(state.bundle).name} stays the current model")
    # Those that were off get it next time; one that refused or failed it is not asked again and again.
    state.to_push = any(outcome.state == "unreachable" for outcome in bad) and not rollout.stopped
    _keep(work, state)
    return not bad and not rollout.stopped


def _state(work: Path) -> State:
    path = work / STATE
    try:
        return msgspec.json.decode(path.read_bytes(), type=State)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no loop was begun here; name --run and --bundle the first time") from error
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: damaged ({error}); remove it, and begin with --run and --bundle") from error


def _keep(work: Path, state: State) -> None:
    with replacing(work / STATE) as file:
        file.write(msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n")


def _note(work: Path, did: Sequence[str]) -> None:
    """One line of what a round did, for later."""
    line = {"at": now(), "did": list(did)}
    with (work / HISTORY).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """While no other process goes round; a timer may fire while a training takes hours."""
    try:
        handle = os.open(work / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DataError(f"{work}: {error.strerror}; name --run and --bundle the first time") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ResourceError(f"{work}: another `edgeloop loop` is at work here; it goes on by itself") from error
        yield
    finally:
        os.close(handle)
