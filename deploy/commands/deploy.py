"""`edgeloop deploy`: manages devices over SSH."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import msgspec
from rich.table import Table

from edge_agent.errors import DeviceError, EdgeloopError
from edge_agent.monitoring.drift import DeviceDrift
from edge_agent.store.model_store import StoreStatus

from ..fleet.inventory import Host, choose
from ..fleet.push import roll_back
from ..fleet.ssh import Connection, as_root, connected
from . import _console
from ._hosts import each, end, takes_hosts
from .deploy_bench import bench_command
from .deploy_image import image_command
from .deploy_provision import deprovision_command, provision_command
from .deploy_pull import pull_command
from .deploy_push import push_command


@click.group("deploy")
def deploy_command() -> None:
    """Manage devices over SSH: provision them, roll out models, show their status, fetch captures.

    HOST is [USER@]HOST[:PORT], an alias in ~/.ssh/config, or a host or group of the --inventory file. Without HOST,
    all hosts of the inventory are used. Your SSH configuration, keys, agent and known hosts apply.
    """


for _command in (image_command, provision_command, deprovision_command, push_command, pull_command, bench_command):
    deploy_command.add_command(_command)


@deploy_command.command("status")
@takes_hosts
@click.option("--json", "as_json", is_flag=True, help="Print all details as JSON.")
def status_command(hosts: tuple[str, ...], inventory: Path | None, ssh_config: Path | None, *, as_json: bool) -> None:
    """Show the model of each device and its state."""

    async def ask(host: Host) -> StoreStatus:
        async with connected(host, ssh_config=ssh_config) as device:
            return await device.ask(StoreStatus, "status", "--json")

    results = each(choose(hosts, inventory), ask)
    if as_json:
        report = {
            name: {"error": str(r)} if isinstance(r, Exception) else msgspec.to_builtins(r) for name, r in results
        }
        click.echo(json.dumps(report, indent=2))
    else:
        table = Table("device", "model", "state", "canary", "invoke", "previous")
        for name, result in results:
            table.add_row(name, *_row(result))
        _console.out.print(table)
    end(results)


def _row(status: StoreStatus | EdgeloopError) -> list[str]:
    if isinstance(status, EdgeloopError):
        return ["", f"[red]{_console.plain(status)}[/]", "", "", ""]
    one = status.current
    if one is None:
        return ["none", "no model is installed", "", "", ""]
    state = f"{one.status}: {one.reason}" if one.reason else one.status
    canary = one.canary
    shown = ["", ""] if canary is None else [f"{100 * canary.accuracy:.0f} %", f"{canary.p50_ms:.1f} ms"]
    before = status.previous
    previous = (
        "" if before is None else f"{before.name} {before.version}{' (failed)' if before.status == 'failed' else ''}"
    )
    return [_console.plain(f"{one.name} {one.version}"), _console.plain(state), *shown, _console.plain(previous)]


@deploy_command.command("drift")
@takes_hosts
@click.option("--json", "as_json", is_flag=True, help="Print all details as JSON.")
def drift_command(hosts: tuple[str, ...], inventory: Path | None, ssh_config: Path | None, *, as_json: bool) -> None:
    """Show for each camera whether the model's scores are drifting.

    Exits with status 1 if any camera is drifting. In that case pull its captures, review them and retrain.
    """

    async def ask(host: Host) -> DeviceDrift:
        async with connected(host, ssh_config=ssh_config) as device:
            # Exit status 1 means that a camera is drifting; the report contains it as well.
            return await device.ask(DeviceDrift, "drift", "--json", ok_codes=(0, 1))

    results = each(choose(hosts, inventory), ask)
    if as_json:
        report = {
            name: {"error": str(r)} if isinstance(r, Exception) else msgspec.to_builtins(r) for name, r in results
        }
        click.echo(json.dumps(report, indent=2))
    else:
        table = Table(
            "device", "model", "camera", "verdict", "frames", "mean score", "on the test split", "in the first days"
        )
        for name, result in results:
            for row in _drift_rows(result):
                table.add_row(name, *row)
        _console.out.print(table)
    end(results)
    reports = [result for _, result in results if isinstance(result, DeviceDrift)]
    if any(camera.verdict == "drifting" for report in reports for camera in report.cameras):
        sys.exit(1)


def _drift_rows(result: DeviceDrift | EdgeloopError) -> list[list[str]]:
    if isinstance(result, EdgeloopError):
        return [["", "", f"[red]{_console.plain(result)}[/]", "", "", "", ""]]
    rows = []
    for one in result.cameras:
        baseline = one.test or one.first
        rows.append(
            [
                _console.plain(result.model),
                _console.plain(one.camera),
                f"[{'red' if one.verdict == 'drifting' else 'green'}]{one.verdict}[/]",
                str(one.frames),
                "" if baseline is None else f"{baseline.now:.2f}",
                "" if one.test is None else f"{one.test.before:.2f}",
                "" if one.first is None else f"{one.first.before:.2f}",
            ]
        )
    return rows or [[_console.plain(result.model), "", "no frames yet", "", "", "", ""]]


@deploy_command.command("rollback")
@takes_hosts
@click.option(
    "--reason",
    default="rolled back by hand",
    show_default=True,
    help="Reason to record with the model that is rolled back.",
)
def rollback_command(hosts: tuple[str, ...], inventory: Path | None, ssh_config: Path | None, reason: str) -> None:
    """Roll back each device to its previous model."""
    results = each(choose(hosts, inventory), lambda host: roll_back(host, reason, ssh_config=ssh_config))
    for name, result in results:
        if not isinstance(result, EdgeloopError):
            _console.out.print(f"{name}: runs {_console.plain(result)} again")
    end(results)


@deploy_command.command("logs")
@takes_hosts
@click.option(
    "--lines", "-n", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Number of lines to show."
)
@click.option("--follow", "-f", is_flag=True, help="Keep printing new lines until Ctrl-C.")
def logs_command(
    hosts: tuple[str, ...], inventory: Path | None, ssh_config: Path | None, lines: int, *, follow: bool
) -> None:
    """Print the agents' logs; with several devices, each line begins with the device's name."""
    chosen = choose(hosts, inventory)
    journal = ["journalctl", "--unit=edgeloop.service", "--no-pager", "--output=short-iso", f"--lines={lines}"]

    async def read(host: Host) -> None:
        async with connected(host, ssh_config=ssh_config) as device:
            await _copy_lines(
                device, as_root([*journal, *(["--follow"] if follow else [])]), f"{host.name}: " * (len(chosen) > 1)
            )

    end(each(chosen, read))


async def _copy_lines(device: Connection, command: str, prefix: str) -> None:
    async with device.process(command) as process:
        process.stdin.write_eof()
        while line := await process.stdout.readline():
            click.echo(prefix + _console.printable(line.decode(errors="replace").rstrip("\n")))
        errors = (await process.stderr.read(4096)).decode(errors="replace")
        await process.wait_closed()
        if process.exit_status != 0 and "not found" in errors and "journalctl" in errors:
            raise DeviceError(
                f"{device.host.name}: it has no systemd journal; look at the output of the process that started the "
                "agent"
            )
        if process.exit_status != 0:
            raise device.failure(process.exit_status or -1, errors)
