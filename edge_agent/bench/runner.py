"""Runs a benchmark in child processes, one after the other, and collects the results; this process idles meanwhile."""

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
from .worker import Kind, Outcome, Round, Task

_PATIENCE_S = 120.0
"""Seconds that a child may take in addition to its task, for example to load a large model from a slow SD card."""
_MOST_TIMES = 2000
_PROFILE_S = 30.0
"""Estimated duration of a profile in seconds, for about 80 operations and 60 runs of the model cut after each one."""
_BURST_S = 10.0


@dataclass(frozen=True)
class Plan:
    """Plan of a benchmark.

    Attributes:
        bundles: bundle files or directories.
        threads: thread counts to measure; if empty, the agent's default.
        delegates: external delegates to measure; None stands for the CPU.
        seconds: length of a round.
        rounds: number of rounds per configuration. Each round runs in a new process, and configurations alternate.
        stages: whether to measure the pipeline stages as well.
        sustained_s: seconds of sustained load; 0 skips this measurement.
        source: camera on which to measure the whole agent; empty skips this measurement.
        profile: whether to measure the time of each operation as well.
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
"""Callback with the name of the current measurement and the share of the benchmark that is done, 0 to 1."""


def measure(plan: Plan, progress: Progress, keep: Callable[[Report], Any]) -> Report:
    """Run a benchmark.

    A measurement that fails is recorded in the report, and the benchmark continues with the next one. Ctrl-C ends the
    benchmark and keeps the results so far.

    Args:
        plan: the measurements.
        progress: called with the name of the current measurement and the share of the benchmark that is done, 0 to 1.
        keep: called with the unfinished report after each measurement, and with the final one.

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
            if jobs.has_new_results():
                # Only then, because this process should stay idle while a child measures.
                keep(jobs.add_to(report))
    except KeyboardInterrupt:
        jobs.failed.append(Failed("the rest", "interrupted"))
    report = msgspec.structs.replace(jobs.add_to(report), complete=not jobs.failed)
    keep(report)
    return report


class _Jobs:
    """Child processes of a plan, and their results so far."""

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
        self._reported = 0

    def steps(self) -> Iterator[tuple[str, float]]:
        """Run all measurements; yield the name of the current one and the share of all work that is done, 0 to 1."""
        plan, count = self.plan, len(self.configurations)
        total_s = count * (plan.rounds * (plan.seconds + 1) + plan.sustained_s + bool(plan.source) * plan.seconds)
        total_s += count * plan.profile * _PROFILE_S
        done_s = 0.0
        for number in range(plan.rounds):
            # Configurations alternate, so that slow changes of the machine affect all of them alike.
            for key in self.configurations:
                yield from self._steps(
                    f"round {number + 1}: {self._name(key)}",
                    done_s,
                    plan.seconds + 1,
                    total_s,
                    self._round(key, stages=plan.stages and number == 0),
                )
                done_s += plan.seconds + 1
        for key in self.configurations:
            if plan.source:
                yield from self._steps(f"camera: {self._name(key)}", done_s, plan.seconds, total_s, self._camera(key))
                done_s += plan.seconds
            if plan.profile and key[2] is None:
                yield from self._steps(
                    f"operations: {self._name(key)}", done_s, _PROFILE_S, total_s, self._profile(key)
                )
                done_s += _PROFILE_S
            if plan.sustained_s:
                yield from self._steps(
                    f"sustained: {self._name(key)}", done_s, plan.sustained_s, total_s, self._sustain(key)
                )
                done_s += plan.sustained_s

    def _steps(
        self, what: str, done_s: float, own_s: float, total_s: float, work: Iterator[float]
    ) -> Iterator[tuple[str, float]]:
        try:
            for share in work:
                yield what, (done_s + own_s * share) / total_s
        except EdgeloopError as error:
            self.failed.append(Failed(what, str(error)))
            yield what, (done_s + own_s) / total_s

    def _name(self, key: tuple[str, int, str | None]) -> str:
        digest, threads, delegate = key
        manifest = self.bundles[digest].manifest
        on = f", {Path(delegate).name}" if delegate else ""
        return f"{manifest.name} {manifest.version}, {threads} thread{'s' * (threads > 1)}{on}"

    def _task(self, key: tuple[str, int, str | None], do: Kind, **more: Any) -> Task:
        digest, threads, delegate = key
        bundle = os.fspath(Path(self.bundles[digest].path).absolute())
        return Task(do=do, bundle=bundle, threads=threads, delegate=delegate, **more)

    def _run_task(self, task: Task, on_result: Callable[[Any], object]) -> Iterator[float]:
        """Run a task in a child process. Call ``on_result`` with its result; yield the share that is done, 0 to 1."""
        for message in _run_child(task):
            if isinstance(message, float):
                yield message
            elif message.get("result") is not None:
                on_result(message["result"])
        yield 1.0

    def _round(self, key: tuple[str, int, str | None], *, stages: bool) -> Iterator[float]:
        if any(failure.what.endswith(self._name(key)) for failure in self.failed):
            return  # it would fail again
        task = self._task(key, "round", seconds=self.plan.seconds, stages=stages)
        yield from self._run_task(
            task, lambda result: self.rounds.setdefault(key, []).append(msgspec.convert(result, Round))
        )

    def _camera(self, key: tuple[str, int, str | None]) -> Iterator[float]:
        def add(result: dict[str, float]) -> None:
            rates = (result["seconds"], result["captured_per_s"], result["classified_per_s"])
            latencies = (result["p50"], result["p95"], result["p99"])
            self.end_to_end.append(EndToEnd(key[0], key[1], self.plan.source, *rates, *latencies))

        yield from self._run_task(self._task(key, "agent", seconds=self.plan.seconds, source=self.plan.source), add)

    def _profile(self, key: tuple[str, int, str | None]) -> Iterator[float]:
        def add(result: Any) -> None:
            self.profiles.append(Profile(key[0], key[1], msgspec.convert(result, tuple[Operation, ...])))

        yield from self._run_task(self._task(key, "profile", seconds=_PROFILE_S), add)

    def _sustain(self, key: tuple[str, int, str | None]) -> Iterator[float]:
        seconds: list[Second] = []
        try:
            for message in _run_child(self._task(key, "sustain", seconds=self.plan.sustained_s)):
                if isinstance(message, float):
                    yield message
                elif "second" in message:
                    seconds.append(msgspec.convert(message["second"], Second))
        finally:
            if seconds:
                self.sustained.append(_sustained(key, seconds))
        yield 1.0

    def has_new_results(self) -> bool:
        """Return whether there are new results since the last call."""
        count = sum(map(len, self.rounds.values())) + len(self.sustained) + len(self.end_to_end)
        count += len(self.profiles) + len(self.failed)
        has_new, self._reported = count > self._reported, count
        return has_new

    def add_to(self, report: Report) -> Report:
        """Return a copy of the report that contains all results so far."""
        return msgspec.structs.replace(
            report,
            steady=tuple(_steady(key, rounds) for key, rounds in self.rounds.items()),
            sustained=tuple(self.sustained),
            end_to_end=tuple(self.end_to_end),
            profiles=tuple(self.profiles),
            failed=tuple(self.failed),
        )


def _run_child(task: Task) -> Iterator[Any]:
    """Run a task in a child process. Yield its progress as numbers, 0 to 1, and its other messages as decoded JSON.

    Raises:
        EdgeloopError: the child reported an error, hung or crashed.
    """
    task = msgspec.structs.replace(task, spawned_ns=time.monotonic_ns())
    child = subprocess.Popen(
        # -P: a file in the working directory must not be imported instead of one of our modules.
        [sys.executable, "-P", "-m", "edge_agent.bench.worker", msgspec.json.encode(task).decode()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    ended: dict[str, Any] | None = None
    try:
        for line in _lines(child.stdout, task.seconds + _PATIENCE_S):
            message = msgspec.json.decode(line)
            if "done" in message:
                yield float(message["done"])
            else:
                ended = message if "error" in message or "result" in message else ended
                yield message
    finally:
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()
    outcome = Outcome() if ended is None else msgspec.convert(ended, Outcome)
    if ended is None or outcome.error is not None:
        raise EdgeloopError(outcome.error or "the measuring process crashed")


def _lines(pipe: IO[bytes] | None, timeout_s: float) -> Iterator[bytes]:
    """Yield the lines of a pipe as they arrive."""
    handle = -1 if pipe is None else pipe.fileno()
    deadline, rest = time.monotonic() + timeout_s, b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([handle], [], [], left)[0]:
            raise EdgeloopError(f"the measuring process did not finish within {timeout_s:.0f} s")
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
    times = [value for one in rounds for value in one.times_ms]
    medians = tuple(round(float(np.median(one.times_ms)), 4) for one in rounds)
    conditions = [one.conditions for one in rounds]
    notes = disturbances(
        [one.times_ms for one in rounds],
        others=max(one.others for one in conditions),
        stolen=max(one.stolen for one in conditions),
        throttled=sorted({flag for one in conditions for flag in one.throttled}),
        hotter_c=max(one.hotter_c for one in conditions),
    )
    if threads > cores():
        notes.append(f"{threads} threads on {cores()} cores")
    stages = rounds[0].stages
    energies = [one.energy_mj for one in rounds if one.energy_mj is not None]
    return Steady(
        bundle=digest,
        threads=threads,
        delegate=delegate,
        runtime=rounds[0].runtime,
        invoke=Spread.of(times),
        rounds_p50_ms=medians,
        frames_per_s=round(1000 / float(np.mean(times)), 2),
        warmup_runs=max(one.warmup_runs for one in rounds),
        start=Start(**rounds[0].start),
        stages=Stages(**{name: Spread.of(values) for name, values in stages.items()}) if stages else None,
        memory_mb=max(one.memory_mb for one in rounds),
        energy_mj=round(float(np.median(energies)), 3) if energies else None,
        notes=tuple(notes),
        times_ms=tuple(times[:: max(1, len(times) // _MOST_TIMES)]),
    )


def _sustained(key: tuple[str, int, str | None], seconds: Sequence[Second]) -> Sustained:
    burst = float(np.median([second.p50_ms for second in seconds if second.at_s < _BURST_S]))
    last = float(np.median([second.p50_ms for second in seconds[-max(1, len(seconds) // 4) :]]))
    return Sustained(*key, tuple(seconds), round(burst, 4), round(last, 4), round(last / burst, 4))
