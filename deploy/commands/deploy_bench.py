"""`edgeloop deploy bench`: measures latency on many devices."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from edge_agent.errors import EdgeloopError

from ..fleet.inventory import choose
from ..fleet.remote_bench import Measured, bench
from . import _console
from ._hosts import each, end, takes_hosts


@click.command("bench")
@takes_hosts
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("bench"),
    show_default=True,
    help="Folder for the reports, one file per device.",
)
@click.option("--threads", help="Thread counts to measure, such as 1,2,4; by default the number that the agent uses.")
@click.option(
    "--seconds", type=click.FloatRange(0.1, 600), default=3, show_default=True, help="Duration of a round, in seconds."
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 20),
    default=3,
    show_default=True,
    help="Number of rounds, in new processes each.",
)
@click.option("--sustained", type=click.FloatRange(1, 86400), help="Also measure sustained load for this many seconds.")
def bench_command(
    hosts: tuple[str, ...],
    inventory: Path | None,
    ssh_config: Path | None,
    out: Path,
    threads: str | None,
    seconds: float,
    rounds: int,
    sustained: float | None,
) -> None:
    """Measure the latency of each device's current model on the device. The agent is stopped during the measurement.

    Compare the reports with `edgeloop bench compare` and `edgeloop bench report`.
    """
    options = ["--seconds", f"{seconds:g}", "--rounds", str(rounds)]
    options += ["--threads", threads] if threads else []
    options += ["--sustained", f"{sustained:g}"] if sustained else []
    longest = max(seconds, sustained or 0.0)
    with _console.counting("configurations measured") as on_progress:
        results = each(
            choose(hosts, inventory),
            lambda host: bench(host, options, out, seconds=longest, ssh_config=ssh_config, on_progress=on_progress),
        )
    for name, result in results:
        if not isinstance(result, EdgeloopError):
            fastest = min((one.invoke.p50 for one in result.report.steady), default=None)
            latency = "nothing was measured" if fastest is None else f"p50 {fastest:.2f} ms"
            incomplete = "" if result.report.complete else "; incomplete"
            _console.out.print(f"{name}: {latency}, {_console.plain(result.path)}{incomplete}")
            for failure in result.report.failed:
                _console.err.print(f"{name}: {_console.plain(f'{failure.what}: {failure.reason}')}")
    end(results)
    if not all(isinstance(result, Measured) and result.report.complete for _, result in results):
        sys.exit(1)
