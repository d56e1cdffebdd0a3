"""A benchmark from its plan to its report: children one after the other, nothing else of ours running meanwhile."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from ..bundle import Bundle, open_bundle
from ..bundle.archive import MODEL
from ..errors import EdgeloopError
from ..inference.interpreter import cores, default_threads
from ..messages import timestamp
from .machine import describe
from .report import (
    VERSION,
    EndToEnd,
    Failed,
    Operation,
    Profile,
    Report,
    Second,
    Spread,
    Stages,
    Start,
    Steady,
    Subject,
    Sustained,
)
from .steady_state import disturbances
from .worker import Do, Ended, Round, Task

_PATIENCE_S = 120.0
"""Beyond what a child was asked for: loading a large model from a slow card."""
_MOST_TIMES = 2000
_PROFILE_S = 30.0
"""What a profile is allowed for; some 80 operations, 60 runs of each cut."""
_BURST_S = 10.0


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        bundles: verified files or directories.
        threads: inference threads, each in turn; those the agent would take when empty.
        delegates: external delegates, each in turn; None is the CPU.
        seconds: of a round.
        rounds: of each, in processes of their own, all configurations in turn.
        stages: a frame's way part by part, too.
        sustained_s: seconds of work without a pause; 0 does none.
        source: camera for the agent to look through; empty does not.
        profile: where each bundle's time goes, operation by operation, too.
    """

    bundles: Sequence[Path]
    threads: Sequence[int] = ()
    delegates: Sequence[str | None] = (None,)
    seconds: float = 3.0
    rounds: int = 3
    stages: bool = True
    sustained_s: float = 0.0
    source: str = ""
    profile: bool = False


Progress = Callable[[str, float], Any]
"""What is being measured, and the share of the whole that is done."""


def measure(plan: Plan, progress: Progress, keep: Callable[[Report], Any]) -> Report:
    """Carry out a plan. What cannot be measured is noted, and the rest goes on; Ctrl-C ends it with what there is.

    Args:
        plan: what to measure.
        progress: told how far it is.
        keep: given the report as far as it is, again and again.

    Raises:
        BundleError: a bundle is damaged.
    """
    opened = [open_bundle(path) for path in plan.bundles]
    at = timestamp(time.time_ns())
    report = Report(VERSION, at, describe(), tuple(_subject(bundle) for bundle in opened), complete=False)
    jobs = _Jobs(plan, opened)
    try:
        for what, share in jobs.steps():
            progress(what, share)
            if jobs.has_news():
                # Only then: while a child measures, this process had better do nothing.
                keep(jobs.into(report))
    except KeyboardInterrupt:
        jobs.failed.append(Failed("the rest", "broken off"))
    report = msgspec.structs.replace(jobs.into(report), complete=not jobs.failed)
    keep(report)
    return report


class _Jobs:
    """The children of a plan, and what they have said so far."""

    def __init__(self, plan: Plan, bundles: Sequence[Bundle]) -> None:
        self.plan = plan
        self.bundles = {bundle.digest: bundle for bundle in bundles}
        threads = tuple(plan.threads) or (default_threads(),)
        self.configurations = [
            (bundle.digest, count, delegate) for bundle in bundles for delegate in plan.delegates for count in threads
        ]
        self.rounds: dict[tuple[str, int, str | None], list[Round]] = {}
        self.sustained: list[Sustained] = []
        self.end_to_end: list[EndToEnd] = []
        self.profiles: list[Profile] = []
        self.failed: list[Failed] = []
        self._told = 0

    def steps(self) -> Iterator[tuple[str, float]]:
        """Do it all; after and within each piece what is done, and which share of the whole that is."""
        plan, total = self.plan, len(self.configurations)
        whole = total * (plan.rounds * (plan.seconds + 1) + plan.sustained_s + bool(plan.source) * plan.seconds)
        whole += total * plan.profile * _PROFILE_S
        past = 0.0
        for number in range(plan.rounds):
            # All in turn, so that what changes with time meets each alike.
            for key in self.configurations:
                yield from self._steps(
                    f"round {number + 1}: {self._name(key)}",
                    past,
                    plan.seconds + 1,
                    whole,
                    self._round(key, stages=plan.stages and number == 0),
                )
                past += plan.seconds + 1
        for key in self.configurations:
            if plan.source:
                yield from self._steps(f"camera: {self._name(key)}", past, plan.seconds, whole, self._camera(key))
                past += plan.seconds
            if plan.profile and key[2] is None:
                yield from self._steps(f"operations: {self._name(key)}", past, _PROFILE_S, whole, self._profile(key))
                past += _PROFILE_S
            if plan.sustained_s:
                yield from self._steps(
                    f"sustained: {self._name(key)}", past, plan.sustained_s, whole, self._sustain(key)
                )
                past += plan.sustained_s

    def _steps(
        self, what: str, past: float, own: float, whole: float, work: Iterator[float]
    ) -> Iterator[tuple[str, float]]:
        try:
            for share in work:
                yield what, (past + own * share) / whole
        except EdgeloopError as error:
            self.failed.append(Failed(what, str(error)))
            yield what, (past + own) / whole

    def _name(self, key: tuple[str, int, str | None]) -> str:
        digest, threads, delegate = key
        manifest = self.bundles[digest].manifest
        on = f", {Path(delegate).name}" if delegate else ""
        return f"{manifest.name} {manifest.version}, {threads} thread{'s' * (threads > 1)}{on}"

    def _task(self, key: tuple[str, int, str | None], do: Do, **more: Any) -> Task:
        digest, threads, delegate = key
        bundle = os.fspath(Path(self.bundles[digest].path).absolute())
        return Task(do=do, bundle=bundle, threads=threads, delegate=delegate, **more)

    def _asked(self, task: Task, take: Callable[[Any], object]) -> Iterator[float]:
        """Run a child, and take its result; the share that is done."""
        for said in _children(task):
            if isinstance(said, float):
                yield said
            elif said.get("result") is not None:
                take(said["result"])
        yield 1.0

    def _round(self, key: tuple[str, int, str | None], *, stages: bool) -> Iterator[float]:
        if any(failure.what.endswith(self._name(key)) for failure in self.failed):
            return  # it would fail again
        task = self._task(key, "round", seconds=self.plan.seconds, stages=stages)
        yield from self._asked(
            task, lambda found: self.rounds.setdefault(key, []).append(msgspec.convert(found, Round))
        )

    def _camera(self, key: tuple[str, int, str | None]) -> Iterator[float]:
        def take(found: dict[str, float]) -> None:
            rates = (found["seconds"], found["captured_per_s"], found["classified_per_s"])
            latencies = (found["p50"], found["p95"], found["p99"])
            self.end_to_end.append(EndToEnd(key[0], key[1], self.plan.source, *rates, *latencies))

        yield from self._asked(self._task(key, "agent", seconds=self.plan.seconds, source=self.plan.source), take)

    def _profile(self, key: tuple[str, int, str | None]) -> Iterator[float]:
        def take(found: Any) -> None:
            self.profiles.append(Profile(key[0], key[1], msgspec.convert(found, tuple[Operation, ...])))

        yield from self._asked(self._task(key, "profile", seconds=_PROFILE_S), take)

    def _sustain(self, key: tuple[str, int, str | None]) -> Iterator[float]:
        seconds: list[Second] = []
        try:
            for said in _children(self._task(key, "sustain", seconds=self.plan.sustained_s)):
                if isinstance(said, float):
                    yield said
                elif "second" in said:
                    seconds.append(msgspec.convert(said["second"], Second))
        finally:
            if seconds:
                self.sustained.append(_sustained(key, seconds))
        yield 1.0

    def has_news(self) -> bool:
        """Whether there is more than when this was last asked."""
        count = sum(map(len, self.rounds.values())) + len(self.sustained) + len(self.end_to_end)
        count += len(self.profiles) + len(self.failed)
        news, self._told = count > self._told, count
        return news

    def into(self, report: Report) -> Report:
        """The report with all there is."""
        return msgspec.structs.replace(
            report,
            steady=tuple(_steady(key, rounds) for key, rounds in self.rounds.items()),
            sustained=tuple(self.sustained),
            end_to_end=tuple(self.end_to_end),
            profiles=tuple(self.profiles),
            failed=tuple(self.failed),
        )


def _children(task: Task) -> Iterator[Any]:
    """Run a child; its progress as numbers, other lines as they are decoded.

    Raises:
        EdgeloopError: it said why it could not, hung, or died.
    """
    task = msgspec.structs.replace(task, spawned_ns=time.monotonic_ns())
    child = subprocess.Popen(
        # -P: a file in the working directory must not pass for one of our modules.
        [sys.executable, "-P", "-m", "edge_agent.bench.worker", msgspec.json.encode(task).decode()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    ended: dict[str, Any] | None = None
    try:
        for line in _lines(child.stdout, task.seconds + _PATIENCE_S):
            said = msgspec.json.decode(line)
            if "done" in said:
                yield float(said["done"])
            else:
                ended = said if "error" in said or "result" in said else ended
                yield said
    finally:
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()
    told = Ended() if ended is None else msgspec.convert(ended, Ended)
    if ended is None or told.error is not None:
        raise EdgeloopError(told.error or "the process that measured it died")


def _lines(pipe: IO[bytes] | None, timeout_s: float) -> Iterator[bytes]:
    """Lines as they come."""
    handle = -1 if pipe is None else pipe.fileno()
    deadline, rest = time.monotonic() + timeout_s, b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([handle], [], [], left)[0]:
            raise EdgeloopError(f"no end after {timeout_s:.0f} s")
        block = os.read(handle, 65536)
        if not block:
            return
        *whole, rest = (rest + block).split(b"\n")
        yield from whole


def _subject(bundle: Bundle) -> Subject:
    manifest = bundle.manifest
    files = [entry.size for entry in manifest.files.values()]
    accuracy = None
    with suppress(AttributeError):
        accuracy = round(float(manifest.metrics.model.accuracy), 4)
    return Subject(
        name=manifest.name,
        version=manifest.version,
        digest=bundle.digest,
        file_mb=round(sum(files) / 1e6, 3),
        model_mb=round(manifest.files[MODEL].size / 1e6, 3),
        kind=manifest.tensors.input.dtype,
        input=manifest.tensors.input.shape,
        accuracy=accuracy,
    )


def _steady(key: tuple[str, int, str | None], rounds: Sequence[Round]) -> Steady:
    digest, threads, delegate = key
    times = [value for found in rounds for value in found.times_ms]
    medians = tuple(round(float(np.median(found.times_ms)), 4) for found in rounds)
    meanwhile = [found.meanwhile for found in rounds]
    notes = disturbances(
        [found.times_ms for found in rounds],
        others=max(one.others for one in meanwhile),
        stolen=max(one.stolen for one in meanwhile),
        throttled=sorted({flag for one in meanwhile for flag in one.throttled}),
        hotter_c=max(one.hotter_c for one in meanwhile),
    )
    if threads > cores():
        notes.append(f"{threads} threads on {cores()} cores")
    stages = rounds[0].stages
    energies = [found.energy_mj for found in rounds if found.energy_mj is not None]
    return Steady(
        bundle=digest,
        threads=threads,
        delegate=delegate,
        runtime=rounds[0].runtime,
        invoke=Spread.of(times),
        rounds_p50_ms=medians,
        frames_per_s=round(1000 / float(np.mean(times)), 2),
        warmup_runs=max(found.warmup_runs for found in rounds),
        start=Start(**rounds[0].start),
        stages=Stages(**{name: Spread.of(values) for name, values in stages.items()}) if stages else None,
        memory_mb=max(found.memory_mb for found in rounds),
        energy_mj=round(float(np.median(energies)), 3) if energies else None,
        notes=tuple(notes),
        times_ms=tuple(times[:: max(1, len(times) // _MOST_TIMES)]),
    )


def _sustained(key: tuple[str, int, str | None], seconds: Sequence[Second]) -> Sustained:
    burst = float(np.median([second.p50_ms for second in seconds if second.at_s < _BURST_S]))
    last = float(np.median([second.p50_ms for second in seconds[-max(1, len(seconds) // 4) :]]))
    return Sustained(*key, tuple(seconds), round(burst, 4), round(last, 4), round(last / burst, 4))
