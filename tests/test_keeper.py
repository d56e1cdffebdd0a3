"""Cameras that hang, break, freeze and come back."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self

import numpy as np
import pytest

from edge_agent.cameras import ArrayFrame, Frame, keeper
from edge_agent.cameras.keeper import KeptCamera
from edge_agent.errors import CameraError, ConfigError


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "RETRY_S", (0.05, 0.2))


class Scripted:
    """A camera whose frames a function yields, one call an opening."""

    def __init__(self, script: Callable[[], Iterator[Frame]]) -> None:
        self.script = script

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def __iter__(self) -> Iterator[Frame]:
        return self.script()


def shown(level: int, seq: int = 0) -> Frame:
    return ArrayFrame(image=np.full((16, 16, 3), level % 256, np.uint8), seq=seq)


class Watched:
    """What a kept camera delivered and reported."""

    def __init__(self, script: Callable[[], Iterator[Frame]], *, live: bool = True, frozen_s: float = 0) -> None:
        self.frames: list[Frame] = []
        self.states: list[str] = []
        self.reasons: list[str] = []
        self.openings = 0
        self.stopping = threading.Event()
        self.error: Exception | None = None

        def opened() -> Scripted:
            self.openings += 1
            return Scripted(script)

        def report(state: str, reason: str) -> None:
            self.states.append(state)
            self.reasons.append(reason)

        self.kept = KeptCamera(
            opened, live=live, timeout_s=1.0, frozen_s=frozen_s, deliver=self.frames.append, report=report
        )
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.kept.run(self.stopping)
        except Exception as error:  # noqa: BLE001
            self.error = error

    def until(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, (self.states, self.reasons, len(self.frames))
            time.sleep(0.01)

    def stop(self) -> None:
        self.stopping.set()
        self.thread.join(5)
        assert not self.thread.is_alive()


def living(count: int | None = None) -> Iterator[Frame]:
    for seq in itertools.count() if count is None else range(count):
        yield shown(seq, seq)
        time.sleep(0.01)


def test_a_camera_that_breaks_is_opened_again_and_again() -> None:
    def breaking() -> Iterator[Frame]:
        yield from living(3)
        raise CameraError("unplugged")

    watched = Watched(breaking)
    watched.until(lambda: watched.states.count("lost") >= 3)
    watched.stop()
    assert watched.states[:5] == ["online", "lost", "online", "lost", "online"]
    assert watched.reasons[1] == "unplugged"
    assert watched.kept.reopened >= 2


def test_a_camera_that_is_not_there_is_reported_once() -> None:
    def missing() -> Iterator[Frame]:
        raise CameraError("no such device")

    watched = Watched(missing)
    watched.until(lambda: watched.openings >= 4)
    watched.stop()
    assert watched.states == ["lost"]


def test_a_camera_that_hangs_is_lost_in_time_and_what_it_says_later_is_ignored() -> None:
    woken = threading.Event()
    openings = itertools.count()

    def hanging() -> Iterator[Frame]:
        if next(openings) == 0:
            yield from living(3)
            woken.wait()
            yield shown(200, 777)
        yield from living()

    watched = Watched(hanging)
    watched.until(lambda: "lost" in watched.states)
    assert "no frame for 1 s" in watched.reasons
    watched.until(lambda: watched.states[-1] == "online")
    woken.set()
    count = len(watched.frames)
    watched.until(lambda: len(watched.frames) > count + 20)
    watched.stop()
    assert 777 not in [frame.seq for frame in watched.frames]


def test_a_camera_that_hangs_while_it_is_opened_is_lost_too() -> None:
    never = threading.Event()

    def hanging() -> Iterator[Frame]:
        never.wait()
        yield shown(0)

    watched = Watched(hanging)
    watched.until(lambda: "lost" in watched.states)
    watched.stop()
    never.set()


def test_a_frozen_picture_is_noticed_and_stays_frozen_until_it_moves() -> None:
    thawed = threading.Event()

    def freezing() -> Iterator[Frame]:
        for seq in itertools.count():
            yield shown(seq if thawed.is_set() else 7, seq)
            time.sleep(0.01)

    watched = Watched(freezing, frozen_s=1.0)
    watched.until(lambda: watched.openings >= 4)
    assert watched.states == ["online", "frozen"]
    count = len(watched.frames)
    thawed.set()
    watched.until(lambda: watched.states[-1] == "online" and len(watched.frames) > count + 5)
    watched.stop()


def test_a_still_but_living_picture_is_not_frozen() -> None:
    watched = Watched(living, frozen_s=1.0)
    time.sleep(2.5)
    watched.stop()
    assert watched.states == ["online"]


def test_a_file_ends_once_and_is_not_opened_again() -> None:
    watched = Watched(lambda: living(5), live=False)
    watched.thread.join(10)
    assert (watched.states, watched.openings, len(watched.frames)) == (["online", "ended"], 1, 5)


def test_a_file_that_cannot_be_read_is_an_error() -> None:
    def broken() -> Iterator[Frame]:
        raise CameraError("not a video")

    watched = Watched(broken, live=False)
    watched.thread.join(10)
    assert isinstance(watched.error, CameraError)
    assert watched.openings == 1


def test_what_opening_again_cannot_mend_is_an_error() -> None:
    def impossible() -> Iterator[Frame]:
        raise ConfigError("Picamera2 is not installed")

    watched = Watched(impossible)
    watched.thread.join(10)
    assert isinstance(watched.error, ConfigError)


def test_a_pause_ends_at_once_when_stopping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "RETRY_S", (60.0, 60.0))

    def missing() -> Iterator[Frame]:
        raise CameraError("no such device")

    watched = Watched(missing)
    watched.until(lambda: watched.states == ["lost"])
    watched.stop()


def test_pauses_grow_and_start_anew_after_a_camera_worked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "RETRY_S", (1.0, 60.0))
    pauses: list[float] = []

    class Noting(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout or 0)
            if len(pauses) == 9:
                self.set()
            return self.is_set()

    def missing() -> Iterator[Frame]:
        raise CameraError("no such device")

    kept = KeptCamera(
        lambda: Scripted(missing), live=True, timeout_s=1, frozen_s=0, deliver=print, report=lambda *_: None
    )
    kept.run(Noting())
    for pause, longest in zip(pauses, (1, 2, 4, 8, 16, 32, 60, 60, 60), strict=True):
        assert longest / 2 <= pause <= longest
