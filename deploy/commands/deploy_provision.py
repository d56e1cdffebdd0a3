"""`edgeloop deploy provision` and `deprovision`: a machine made a device, and that taken back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from edge_agent.errors import EdgeloopError

from ..fleet.inventory import Host, choose
from ..provisioning.over_ssh import DeviceSpec, Said, deprovision, provision
from . import _console
from ._hosts import all_of, each, end, takes_hosts


@click.command("provision")
@takes_hosts
@click.option(
    "--config",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="agent.yaml for the devices; the files it names go with it.",
)
@click.option(
    "--trust",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Public key whose signed bundles the devices take, and no others. Several may be given.",
)
@click.option("--bundle", type=click.Path(path_type=Path, dir_okay=False), help="Model to begin with.")
@click.option("--dashboard", is_flag=True, help="Also install the packages that the dashboard needs.")
@click.option("--page", "dashboard", is_flag=True, hidden=True)  # former name of --dashboard
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
def provision_command(
    hosts: tuple[str, ...],
    inventory: Path | None,
    ssh_config: Path | None,
    config: Path,
    trust: tuple[Path, ...],
    bundle: Path | None,
    *,
    dashboard: bool,
    dry_run: bool,
) -> None:
    """Make a fresh Raspberry Pi OS or Debian a device: user, packages, settings, service.

    The device needs no internet: its packages are gathered here. A second run changes nothing, and says so.
    """
    wanted = DeviceSpec(config, trust, bundle, dashboard)

    async def work(chosen: Sequence[Host], tell: Any) -> list[tuple[str, list[Said] | EdgeloopError]]:
        gathering = asyncio.Lock()
        return await all_of(
            chosen,
            lambda host: provision(host, wanted, dry=dry_run, ssh_config=ssh_config, tell=tell, gathering=gathering),
        )

    chosen = choose(hosts, inventory)
    with _console.working() as tell:
        results = asyncio.run(work(chosen, tell))
    _say(results, "nothing to change" if dry_run else "nothing changed")
    if not trust:
        _console.err.print("no --trust KEY.pub: the devices take bundles nobody signed", style="yellow")


@click.command("deprovision")
@takes_hosts
@click.option("--discard-captures", is_flag=True, help="Also where captures were not pulled.")
@click.option("--dry-run", is_flag=True, help="Only show what would go.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def deprovision_command(
    hosts: tuple[str, ...],
    inventory: Path | None,
    ssh_config: Path | None,
    *,
    discard_captures: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Take everything of edgeloop off devices: service, packages, settings, models, captures, user."""
    chosen = choose(hosts, inventory)
    if not (yes or dry_run):
        names = ", ".join(host.name for host in chosen)
        click.confirm(f"Remove edgeloop, its models and settings from {names}?", abort=True)
    results = each(chosen, lambda host: deprovision(host, dry=dry_run, discard=discard_captures, ssh_config=ssh_config))
    _say(results, "nothing to remove")


def _say(results: Sequence[tuple[str, list[Said] | EdgeloopError]], nothing: str) -> None:
    for name, result in results:
        if isinstance(result, EdgeloopError):
            continue
        told = [said for said in result if said.state in ("changed", "would", "note")]
        for said in told:
            would = "would " if said.state == "would" else ""
            _console.out.print(f"{name}: {would}{_console.plain(said.text)}")
        if not any(said.state in ("changed", "would") for said in result):
            _console.out.print(f"{name}: {nothing}")
    end(results)
