"""`edgeloop deploy`: devices over SSH, one or many."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import click
import msgspec
from rich.table import Table

from edge_agent.errors import DeviceError, EdgeloopError
from edge_agent.monitoring.drift import DeviceDrift
from edge_agent.store.model_store import StoreStatus

from ..fleet.inventory import Host, choose
from ..fleet.pull import Pulled, pull
from ..fleet.push import Choices, Outcome, package, roll_back
from ..fleet.remote_bench import Measured, bench
from ..fleet.rollout import AT_ONCE, WAVES, Rollout, roll_out
from ..fleet.ssh import Connection, as_root, connected
from . import _console
from ._hosts import each, end, takes_hosts
from .deploy_image import image_command
from .deploy_provision import deprovision_command, provision_command

_COLOURS = {"good": "green", "active": "green", "stored": "green", "rolled back": "yellow", "unheard": "yellow"}


@click.group("deploy")
def deploy_command() -> None:
    """Devices over SSH: set them up, send models in waves, look, go back, fetch captures.

    HOST is [USER@]HOST[:PORT], what ~/.ssh/config calls it, or a host or group of --inventory; without any, all of the
    inventory. Your own SSH configuration, keys, agent and known hosts are used.
    """


for _command in (image_command, provision_command, deprovision_command):
    deploy_command.add_command(_command)


# --- push ---


@deploy_command.command("push")
@click.argument("bundle", type=click.Path(path_type=Path))
@takes_hosts
@click.option("--waves", default=WAVES, show_default=True, help="How many devices are done when each wave ends.")
@click.option(
    "--tolerate", type=click.FloatRange(0, 100), default=10, show_default=True, help="Percent of a wave that may fail."
)
@click.option("--at-once", type=click.IntRange(1, 256), default=AT_ONCE, show_default=True, help="Devices at a time.")
@click.option("--no-activate", is_flag=True, help="Only store it; the current models stay.")
@click.option("--no-wait", is_flag=True, help="Do not wait for its first 500 frames.")
@click.option(
    "--timeout-s", type=click.FloatRange(1, 86400), default=300, show_default=True, help="Seconds to wait for those."
)
@click.option("--force", is_flag=True, help="Also where it was rolled back before.")
@click.option("--allow-downgrade", is_flag=True, help="Also where a newer one runs.")
@click.option("--json", "as_json", is_flag=True, help="How it went, as JSON.")
def push_command(
    bundle: Path,
    hosts: tuple[str, ...],
    inventory: Path | None,
    ssh_config: Path | None,
    waves: str,
    tolerate: float,
    at_once: int,
    timeout_s: float,
    *,
    no_activate: bool,
    no_wait: bool,
    force: bool,
    allow_downgrade: bool,
    as_json: bool,
) -> None:
    """Send BUNDLE to devices, which prove it and make it current; in waves, the first device alone.

    A device that has the bundle is sent nothing, and one that has part of it the rest. Where it does badly the device
    goes back to its old model by itself; where a wave has too many of those, the whole wave goes back and no further
    one is begun.
    """
    what = package(bundle)
    chosen = choose(hosts, inventory)
    choices = Choices(
        force=force,
        allow_downgrade=allow_downgrade,
        activate=not no_activate,
        watch_s=0 if no_wait or no_activate else timeout_s,
        ssh_config=ssh_config,
    )
    start = time.monotonic()
    with _console.pushing(what, quiet=as_json) as (tell, wave):
        rollout = asyncio.run(
            roll_out(
                chosen,
                what,
                choices,
                plan=waves,
                tolerate=tolerate / 100,
                tell=tell,
                wave=wave,
                at_once=at_once,
            )
        )
    if as_json:
        click.echo(json.dumps(asdict(rollout) | {"bundle": what.digest, "took_s": time.monotonic() - start}, indent=2))
    else:
        _show(rollout, what.name, time.monotonic() - start)
    if rollout.stopped or not all(outcome.healthy for outcome in rollout.outcomes):
        sys.exit(1)


def _show(rollout: Rollout, name: str, took_s: float) -> None:
    for outcome in rollout.outcomes:
        colour = _COLOURS.get(outcome.state, "red")
        _console.out.print(f"{outcome.host}: [{colour}]{outcome.state}[/], {_console.plain(_facts(outcome))}")
    good = sum(outcome.healthy for outcome in rollout.outcomes)
    of = len(rollout.outcomes) + len(rollout.untouched)
    if of > 1:
        _console.out.print(f"{name}: on {good} of {of} devices in {took_s:.0f} s")
    if rollout.stopped and of > 1:
        left = f"; {len(rollout.untouched)} devices were not begun with" if rollout.untouched else ""
        _console.err.print(f"edgeloop: stopped: {rollout.stopped}{left}")


def _facts(outcome: Outcome) -> str:
    if outcome.state == "unreachable":
        return outcome.text
    moved = f"{outcome.moved_bytes / 1e6:.2f} MB moved" if outcome.moved_bytes else "nothing to move"
    return f"{outcome.text}; {moved}, {outcome.took_s:.1f} s"


# --- looking, going back ---


@deploy_command.command("status")
@takes_hosts
@click.option("--json", "as_json", is_flag=True, help="All of it, as JSON.")
def status_command(hosts: tuple[str, ...], inventory: Path | None, ssh_config: Path | None, *, as_json: bool) -> None:
    """Show what each device runs, and how it is doing."""

    async def ask(host: Host) -> StoreStatus:
        async with connected(host, ssh_config=ssh_config) as device:
            return msgspec.json.decode(await device.edgeloop("status", "--json"), type=StoreStatus)

    results = each(choose(hosts, inventory), ask)
    if as_json:
        told = {name: {"error": str(r)} if isinstance(r, Exception) else msgspec.to_builtins(r) for name, r in results}
        click.echo(json.dumps(told, indent=2))
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
    proof = one.proof
    shown = ["", ""] if proof is None else [f"{100 * proof.accuracy:.0f} %", f"{proof.p50_ms:.1f} ms"]
    before = status.previous
    previous = (
        "" if before is None else f"{before.name} {before.version}{' (failed)' if before.status == 'failed' else ''}"
    )
    return [f"{one.name} {one.version}", _console.plain(state), *shown, previous]


@deploy_command.command("drift")
@takes_hosts
@click.option("--json", "as_json", is_flag=True, help="All of it, as JSON.")
def drift_command(hosts: tuple[str, ...], inventory: Path | None, ssh_config: Path | None, *, as_json: bool) -> None:
    """Say of each device's cameras whether the model still fits what they see.

    Exits 1 where one is drifting: pull its captures, review them and retrain.
    """

    async def ask(host: Host) -> DeviceDrift:
        async with connected(host, ssh_config=ssh_config) as device:
            # 1 says that a camera is drifting, which the answer says, too.
            return msgspec.json.decode(await device.edgeloop("drift", "--json", fine=(0, 1)), type=DeviceDrift)

    results = each(choose(hosts, inventory), ask)
    if as_json:
        told = {name: {"error": str(r)} if isinstance(r, Exception) else msgspec.to_builtins(r) for name, r in results}
        click.echo(json.dumps(told, indent=2))
    else:
        table = Table(
            "device", "model", "camera", "verdict", "frames", "mean score", "on its test", "in its first days"
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
        beside = one.test or one.first
        rows.append(
            [
                _console.plain(result.model),
                _console.plain(one.camera),
                f"[{'red' if one.verdict == 'drifting' else 'green'}]{one.verdict}[/]",
                str(one.frames),
                "" if beside is None else f"{beside.now:.2f}",
                "" if one.test is None else f"{one.test.before:.2f}",
                "" if one.first is None else f"{one.first.before:.2f}",
            ]
        )
    return rows or [[_console.plain(result.model), "", "no frames yet", "", "", "", ""]]


@deploy_command.command("rollback")
@takes_hosts
@click.option("--reason", default="rolled back by hand", show_default=True, help="Noted beside the model left behind.")
def rollback_command(hosts: tuple[str, ...], inventory: Path | None, ssh_config: Path | None, reason: str) -> None:
    """Make the previous model current again on each device."""
    results = each(choose(hosts, inventory), lambda host: roll_back(host, reason, ssh_config=ssh_config))
    for name, result in results:
        if not isinstance(result, EdgeloopError):
            _console.out.print(f"{name}: runs {_console.plain(result)} again")
    end(results)


@deploy_command.command("logs")
@takes_hosts
@click.option("--lines", "-n", type=click.IntRange(1, 100_000), default=50, show_default=True, help="How many.")
@click.option("--follow", "-f", is_flag=True, help="Go on until Ctrl-C.")
def logs_command(
    hosts: tuple[str, ...], inventory: Path | None, ssh_config: Path | None, lines: int, *, follow: bool
) -> None:
    """Print what the agents log, each line behind its device's name where there are several."""
    chosen = choose(hosts, inventory)
    journal = ["journalctl", "--unit=edgeloop.service", "--no-pager", "--output=short-iso", f"--lines={lines}"]

    async def read(host: Host) -> None:
        async with connected(host, ssh_config=ssh_config) as device:
            await _copy_lines(
                device, as_root([*journal, *(["--follow"] if follow else [])]), f"{host.name}: " * (len(chosen) > 1)
            )

    end(each(chosen, read))


async def _copy_lines(device: Connection, command: str, before: str) -> None:
    async with device.process(command) as process:
        process.stdin.write_eof()
        while line := await process.stdout.readline():
            click.echo(before + _console.printable(line.decode(errors="replace").rstrip("\n")))
        said = await process.stderr.read(4096)
        await process.wait_closed()
        if process.exit_status != 0 and "not found" in (text := said.decode(errors="replace")) and "journalctl" in text:
            raise DeviceError(f"{device.host.name}: it has no systemd journal; the agent logs to where it was started")
        if process.exit_status != 0:
            raise device.failure(process.exit_status or -1, said.decode(errors="replace"))


# --- captures ---


@deploy_command.command("pull")
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


# --- latency ---


@deploy_command.command("bench")
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
