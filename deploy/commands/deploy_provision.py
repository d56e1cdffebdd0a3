"""`edgeloop deploy provision` and `deprovision`: install edgeloop on devices and remove it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from edge_agent.errors import EdgeloopError

from ..fleet.inventory import Host, choose
from ..provisioning.over_ssh import DeviceSpec, StepResult, deprovision, provision
from . import _console
from ._hosts import all_of, each, end, takes_hosts


@click.command("provision")
@takes_hosts
@click.option(
    "--config",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="agent.yaml for the devices; the files it refers to are copied with it.",
)
@click.option(
    "--trust",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Public key of an allowed signer; the devices then reject all other bundles. Can be given several times.",
)
@click.option("--bundle", type=click.Path(path_type=Path, dir_okay=False), help="Bundle of the first model.")
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
    """Install edgeloop on Raspberry Pi OS or Debian: user, packages, settings, service.

    The device needs no internet access: packages are downloaded on this machine. Running the command again changes
    only what differs.
    """
    spec = DeviceSpec(config, trust, bundle, dashboard)

    async def work(chosen: Sequence[Host], on_progress: Any) -> list[tuple[str, list[StepResult] | EdgeloopError]]:
        gathering = asyncio.Lock()
        return await all_of(
            chosen,
            lambda host: provision(
                host, spec, dry=dry_run, ssh_config=ssh_config, on_progress=on_progress, gathering=gathering
            ),
        )

    chosen = choose(hosts, inventory)
    with _console.working() as on_progress:
        results = asyncio.run(work(chosen, on_progress))
    _show(results, "nothing to change" if dry_run else "nothing changed")
    if not trust:
        _console.err.print("no --trust KEY.pub: the devices accept unsigned bundles", style="yellow")


@click.command("deprovision")
@takes_hosts
@click.option("--discard-captures", is_flag=True, help="Also delete captures that were not pulled.")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@click.option("--yes", is_flag=True, help="Remove everything without asking for confirmation.")
def deprovision_command(
    hosts: tuple[str, ...],
    inventory: Path | None,
    ssh_config: Path | None,
    *,
    discard_captures: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Remove edgeloop from devices: service, packages, settings, models, captures, user."""
    chosen = choose(hosts, inventory)
    if not (yes or dry_run):
        names = ", ".join(host.name for host in chosen)
        click.confirm(f"Remove edgeloop, its models and settings from {names}?", abort=True)
    results = each(chosen, lambda host: deprovision(host, dry=dry_run, discard=discard_captures, ssh_config=ssh_config))
    _show(results, "nothing to remove")


def _show(results: Sequence[tuple[str, list[StepResult] | EdgeloopError]], nothing: str) -> None:
    for name, result in results:
        if isinstance(result, EdgeloopError):
            continue
        for step in result:
            if step.state in ("changed", "would", "note"):
                would = "would " if step.state == "would" else ""
                _console.out.print(f"{name}: {would}{_console.plain(step.text)}")
        if not any(step.state in ("changed", "would") for step in result):
            _console.out.print(f"{name}: {nothing}")
    end(results)
