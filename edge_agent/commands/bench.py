"""`edgeloop bench`: measure the latency of models on this machine and compare reports."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import ConfigError, EdgeloopError, one_line
from ..extras import load_command

if TYPE_CHECKING:
    from ..bench.report import EndToEnd, Profile, Report, Steady, Sustained

_FILE = click.Path(path_type=Path, dir_okay=False)


class _Bench(click.Group):
    """Group that treats arguments other than its own commands as bundles to measure."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.list_commands(ctx), "-h", "--help"):
            args = ["measure", *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), "report"]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name == "report":
            return load_command("edgeloop bench report", "deploy.commands.bench_report", "report_command", "train")
        return super().get_command(ctx, name)


@click.group("bench", cls=_Bench)
def bench_command() -> None:
    """Measure latency on this machine: edgeloop bench BUNDLE... (short for bench measure).

    `compare` shows reports of several machines or models side by side.
    """


def _counts(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in value.split(",")) if value else ()
    except ValueError:
        counts = (0,)
    if any(not 1 <= count <= 64 for count in counts):
        raise click.BadParameter("expected numbers from 1 to 64, such as 1,2,4")
    return counts


@bench_command.command("measure")
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option(
    "--threads", callback=_counts, help="Thread counts to measure, such as 1,2,4. The agent's default if left out."
)
@click.option(
    "--delegate", "delegates", multiple=True, help="External delegate to measure as well as the CPU. May be repeated."
)
@click.option("--seconds", type=click.FloatRange(0.1, 600), default=3, show_default=True, help="Length of each round.")
@click.option(
    "--rounds",
    type=click.IntRange(1, 20),
    default=3,
    show_default=True,
    help="Number of rounds; each round starts new processes.",
)
@click.option(
    "--sustained",
    "sustained_s",
    type=click.FloatRange(1, 86400),
    help="Also measure under sustained load, for this many seconds.",
)
@click.option(
    "--camera", "source", default="", help="Also measure the whole agent on this camera, video file or folder."
)
@click.option("--profile", is_flag=True, help="Also measure the time of each operation of the model.")
@click.option(
    "--json", "json_file", type=_FILE, help="Write the report to this file, and update it after each step; - prints it."
)
def measure_command(
    bundles: tuple[Path, ...],
    threads: tuple[int, ...],
    delegates: tuple[str, ...],
    seconds: float,
    rounds: int,
    sustained_s: float | None,
    source: str,
    json_file: Path | None,
    *,
    profile: bool,
) -> None:
    """Measure BUNDLES on this machine in turn: cold start, steady state and each pipeline stage.

    The benchmark detects warm-up, reports anything that disturbed the measurement, and marks rounds that differ by
    more than 5 % as noisy. Several bundles, such as int8 and float32, are shown side by side.
    """
    import msgspec

    from ..bench.runner import Plan, measure
    from ..inference.interpreter import cores

    printed = json_file == Path("-")

    def keep(report: Report) -> None:
        if printed:
            # One line per update, so that a reader whose connection breaks keeps what was measured.
            click.echo(msgspec.json.encode(report))
        elif json_file is not None:
            report.save(json_file)

    if json_file is not None and not printed and not json_file.absolute().parent.is_dir():
        raise ConfigError(f"{json_file}: no such folder; create it first")
    for count in threads:
        if count > cores():
            click.echo(f"edgeloop: {count} threads on {cores()} cores: the threads will compete for cores", err=True)
    plan = Plan(
        bundles,
        threads,
        (None, *delegates),
        seconds,
        rounds,
        sustained_s=sustained_s or 0.0,
        source=source,
        profile=profile,
    )
    with _progress() as progress:
        report = measure(plan, progress, keep)
    if not printed:
        click.echo(_table([report]))
    for failure in report.failed:
        click.echo(f"edgeloop: {one_line(EdgeloopError(f'{failure.what}: {failure.reason}'))}", err=True)
    if not report.complete:
        sys.exit(1)


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """Show a progress line on standard error if it is a terminal."""
    is_terminal = sys.stderr.isatty()

    def progress(what: str, share: float) -> None:
        if is_terminal:
            bar = "━" * round(30 * share)
            click.echo(f"\r\x1b[K{bar:<30} {100 * share:3.0f} %  {what}", nl=False, err=True)

    try:
        yield progress
    finally:
        if is_terminal:
            click.echo("\r\x1b[K", nl=False, err=True)


@bench_command.command("compare")
@click.argument("reports", nargs=-1, required=True, type=_FILE)
def compare_command(reports: tuple[Path, ...]) -> None:
    """Show REPORTS, as written by --json, side by side; ratios are relative to the first row."""
    from ..bench.report import load

    click.echo(_table([load(path) for path in reports]))


def _table(reports: Sequence[Report]) -> str:
    several = len({report.machine for report in reports}) > 1
    lines = [line for report in reports for line in _machine_lines(report)]
    rows = [(report, steady) for report in reports for steady in report.steady]
    if not rows:
        return "\n".join(lines)
    first = rows[0][1].invoke.p50
    head = ("machine",) * several + ("model", "threads", "p50 ms", "ratio", "p90", "p95", "p99", "max")
    table = [(*head, "frames/s", "memory MB", "size MB", "accuracy")]
    table += [((report.machine.hostname,) if several else ()) + _row(report, steady, first) for report, steady in rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    text = 1 + several
    lines += [
        "  ".join(
            cell.ljust(width) if column < text else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    for report, steady in rows:
        lines += _details(report, steady)
    for report in reports:
        lines += [_sustained_line(report, one) for one in report.sustained]
        lines += [_camera_line(report, one) for one in report.end_to_end]
        lines += [line for one in report.profiles for line in _profile_lines(report, one)]
    return "\n".join(lines)


def _machine_lines(report: Report) -> list[str]:
    machine = report.machine
    named = machine.model or machine.cpu or machine.architecture
    memory = f", {machine.memory_mb / 1000:.1f} GB" if machine.memory_mb else ""
    part = "" if report.complete else " (incomplete)"
    return [f"{machine.hostname}: {named}, {machine.cores} cores{memory}, {machine.os}, {report.at[:10]}{part}"]


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _row(report: Report, steady: Steady, first: float) -> tuple[str, ...]:
    subject = report.subject(steady.bundle)
    on = f" {Path(steady.delegate).name}" if steady.delegate else ""
    spread = steady.invoke
    times = tuple(f"{value:.2f}" for value in (spread.p90, spread.p95, spread.p99, spread.max))
    accuracy = "" if subject is None or subject.accuracy is None else f"{100 * subject.accuracy:.1f} %"
    return (
        report.name_of(steady.bundle) + on,
        str(steady.threads),
        f"{spread.p50:.2f}",
        f"{spread.p50 / first:.2f}",
        *times,
        f"{steady.frames_per_s:.1f}",
        f"{steady.memory_mb:.0f}",
        "" if subject is None else f"{subject.model_mb:.2f}",
        accuracy,
    )


def _details(report: Report, steady: Steady) -> list[str]:
    name, start = f"{report.name_of(steady.bundle)}, {_threads(steady.threads)}", steady.start
    parts = f"process {start.process_ms:.0f}, imports {start.imports_ms:.0f}, bundle {start.bundle_ms:.0f}"
    parts += f", interpreter {start.interpreter_ms:.0f}, first inference {start.first_inference_ms:.0f}"
    warm = f"warm after {steady.warmup_runs} runs; {steady.runtime}"
    lines = [f"{name}: cold start {start.total_ms:.0f} ms ({parts}); {warm}"]
    stages = steady.stages
    if stages is not None:
        lines.append(
            f"{name}: a 720p JPEG frame: decode {stages.decode.p50:.2f}, preprocess {stages.preprocess.p50:.2f}, "
            f"invoke {stages.invoke.p50:.2f}, decide {stages.decide.p50:.3f}, publish {stages.publish.p50:.3f} ms (p50)"
        )
    if steady.energy_mj is not None:
        lines.append(f"{name}: {steady.energy_mj:.1f} mJ per inference, for the whole machine")
    return [*lines, *(f"{name}: note: {note}" for note in steady.notes)]


def _sustained_line(report: Report, one: Sustained) -> str:
    heat = [second.temperature_c for second in one.seconds if second.temperature_c is not None]
    hottest = f", up to {max(heat):.0f} degrees" if heat else ""
    flags = sorted({flag for second in one.seconds for flag in second.throttled})
    throttled = f", {', '.join(flags)}" if flags else ""
    name = f"{report.name_of(one.bundle)}, {_threads(one.threads)}"
    return (
        f"{name}: sustained load for {len(one.seconds)} s: p50 {one.burst_p50_ms:.2f} ms at the start, "
        f"{one.sustained_p50_ms:.2f} ms at the end (ratio {one.slowdown:.2f}){hottest}{throttled}"
    )


def _camera_line(report: Report, one: EndToEnd) -> str:
    return (
        f"{report.name_of(one.bundle)}, {_threads(one.threads)}, on {one.source}: {one.classified_per_s:.1f} of "
        f"{one.captured_per_s:.1f} frames/s classified; capture to publish p50 {one.capture_to_publish_p50_ms:.1f}, "
        f"p95 {one.capture_to_publish_p95_ms:.1f}, p99 {one.capture_to_publish_p99_ms:.1f} ms"
    )


def _profile_lines(report: Report, one: Profile) -> list[str]:
    """Format the time by kind of operation, largest share first, and the ten slowest operations."""
    whole: dict[str, float] = {}
    for operation in one.operations:
        whole[operation.kind] = whole.get(operation.kind, 0.0) + operation.share
    kinds = ", ".join(
        f"{kind} {100 * share:.0f} %"
        for kind, share in sorted(whole.items(), key=lambda item: -item[1])
        if share > 0.005
    )
    lines = [f"{report.name_of(one.bundle)}, {_threads(one.threads)}, {len(one.operations)} operations: {kinds}"]
    order = sorted(range(len(one.operations)), key=lambda place: -one.operations[place].added_ms)
    for place in order[:10]:
        operation = one.operations[place]
        shape = "x".join(map(str, operation.output))
        lines.append(
            f"  {operation.added_ms:8.3f} ms  {100 * operation.share:4.1f} %  {place:3d} {operation.kind} {shape}"
        )
    return lines
