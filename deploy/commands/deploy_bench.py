"""`edgeloop deploy bench`: latency on many devices."""

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
    help="Folder for the reports, a file for each device.",
)
@click.option("--threads", help="Such as 1,2,4; those the agent takes by default.")
@click.option("--seconds", type=click.FloatRange(0.1, 600), default=3, show_default=True, help="Of each round.")
@click.option("--rounds", type=click.IntRange(1, 20), default=3, show_default=True, help="Each in new processes.")
@click.option("--sustained", type=click.FloatRange(1, 86400), help="Seconds without a pause, too.")
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
    """Measure the model that runs on each device, there; its agent stands still meanwhile.

    `edgeloop bench compare` and `bench report` then put the reports side by side.
    """
    options = ["--seconds", f"{seconds:g}", "--rounds", str(rounds)]
    options += ["--threads", threads] if threads else []
    options += ["--sustained", f"{sustained:g}"] if sustained else []
    longest = max(seconds, sustained or 0.0)
    with _console.counting("configurations measured") as tell:
        results = each(
            choose(hosts, inventory),
            lambda host: bench(host, options, out, seconds=longest, ssh_config=ssh_config, tell=tell),
        )
    for name, result in results:
        if not isinstance(result, EdgeloopError):
            fastest = min((one.invoke.p50 for one in result.report.steady), default=None)
            said = "nothing was measured" if fastest is None else f"p50 {fastest:.2f} ms"
            rest = "" if result.report.complete else "; not complete"
            _console.out.print(f"{name}: {said}, {_console.plain(result.path)}{rest}")
            for failure in result.report.failed:
                _console.err.print(f"{name}: {_console.plain(f'{failure.what}: {failure.reason}')}")
    end(results)
    if not all(isinstance(result, Measured) and result.report.complete for _, result in results):
        sys.exit(1)
