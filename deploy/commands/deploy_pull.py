"""`edgeloop deploy pull`: fetches captures from many devices."""

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
    help="Folder for the captures, with one subfolder per device.",
)
@click.option("--keep", is_flag=True, help="Keep the captures on the devices.")
def pull_command(
    hosts: tuple[str, ...], inventory: Path | None, ssh_config: Path | None, out: Path, *, keep: bool
) -> None:
    """Fetch the frames that devices captured for retraining, and delete them on the devices after a verified copy."""
    with _console.counting("captures") as on_progress:
        results = each(
            choose(hosts, inventory),
            lambda host: pull(host, out, keep=keep, ssh_config=ssh_config, on_progress=on_progress),
        )
    for name, result in results:
        if not isinstance(result, EdgeloopError):
            _console.out.print(f"{name}: {_console.plain(_pulled(result))}")
    end(results)


def _pulled(result: Pulled) -> str:
    damaged = f"; {len(result.damaged)} are damaged and stay on the device" if result.damaged else ""
    had = f", {result.had} were already here" if result.had else ""
    return f"{result.fetched} captures fetched into {result.folder}{had}, {result.removed} deleted on it{damaged}"
