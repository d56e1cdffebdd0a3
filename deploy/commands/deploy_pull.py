"""`edgeloop deploy pull`: captures from many devices."""

from __future__ import annotations

from pathlib import Path

import click

from edge_agent.errors import EdgeloopError

from ..fleet.inventory import choose
from ..fleet.pull import Pulled, pull
from . import _console
from ._hosts import each, end, takes_hosts


@click.command("pull")
@takes_hosts
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("captures"),
    show_default=True,
    help="Folder to fetch them into, one below it for each device.",
)
@click.option("--keep", is_flag=True, help="Leave them on the devices, too.")
def pull_command(
    hosts: tuple[str, ...], inventory: Path | None, ssh_config: Path | None, out: Path, *, keep: bool
) -> None:
    """Fetch the frames that devices kept for retraining; a device removes those that are safe here."""
    with _console.counting("captures") as tell:
        results = each(
            choose(hosts, inventory), lambda host: pull(host, out, keep=keep, ssh_config=ssh_config, tell=tell)
        )
    for name, result in results:
        if not isinstance(result, EdgeloopError):
            _console.out.print(f"{name}: {_console.plain(_pulled(result))}")
    end(results)


def _pulled(result: Pulled) -> str:
    damaged = f"; {len(result.damaged)} are damaged and were left there" if result.damaged else ""
    had = f", {result.had} were here" if result.had else ""
    return f"{result.fetched} captures fetched into {result.folder}{had}, {result.removed} removed there{damaged}"
