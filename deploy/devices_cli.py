"""`edgeloop deploy`: devices over SSH, one or many."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from rich.table import Table

from edge_agent.errors import DeviceError, EdgeloopError, one_line
from edge_agent.store import StoreStatus

from . import console
from .card.cli import image_command
from .connection import Connection, as_root, connected
from .hosts import Host, choose
from .provision import Said, Wanted, deprovision, provision
from .pull import Pulled, pull
from .push import Choices, Outcome, package, roll_back
from .rollout import AT_ONCE, WAVES, Rollout, roll_out

Result = TypeVar("Result")
_COLOURS = {"good": "green", "active": "green", "stored": "green", "rolled back": "yellow", "unheard": "yellow"}


@click.group("deploy")
def deploy_command() -> None:
    """Devices over SSH: set them up, send models in waves, look, go back, fetch captures.

    HOST is [USER@]HOST[:PORT], what ~/.ssh/config calls it, or a host or group of --inventory; without any, all of the
    inventory. Your own SSH configuration, keys, agent and known hosts are used.
    """


deploy_command.add_command(image_command)


def _hosts(command: Callable[..., Any]) -> Callable[..., Any]:
    """HOST..., --inventory and --ssh-config, the same for every command."""
    path = click.Path(path_type=Path, dir_okay=False, exists=True)
    hosts = click.argument("hosts", metavar="[HOST]...", nargs=-1)
    inventory = click.option("--inventory", "-i", type=path, help="YAML file of hosts and groups.")
    ssh_config = click.option("--ssh-config", "-F", type=path, help="Instead of ~/.ssh/config.")
    return hosts(inventory(ssh_config(command)))


# --- push ---


@deploy_command.command("push")
@click.argument("bundle", type=click.Path(path_type=Path))
@_hosts
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
    with console.pushing(what, quiet=as_json) as (tell, wave):
        rollout = _run(
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
        console.out.print(f"{outcome.host}: [{colour}]{outcome.state}[/], {console.plain(_facts(outcome))}")
    good = sum(outcome.healthy for outcome in rollout.outcomes)
    of = len(rollout.outcomes) + len(rollout.untouched)
    if of > 1:
        console.out.print(f"{name}: on {good} of {of} devices in {took_s:.0f} s")
    if rollout.stopped and of > 1:
        left = f"; {len(rollout.untouched)} devices were not begun with" if rollout.untouched else ""
        console.err.print(f"edgeloop: stopped: {rollout.stopped}{left}")


def _facts(outcome: Outcome) -> str:
    if outcome.state == "unreachable":
        return outcome.text
    moved = f"{outcome.moved_bytes / 1e6:.2f} MB moved" if outcome.moved_bytes else "nothing to move"
    return f"{outcome.text}; {moved}, {outcome.took_s:.1f} s"


# --- looking, going back ---


@deploy_command.command("status")
@_hosts
@click.option("--json", "as_json", is_flag=True, help="All of it, as JSON.")
def status_command(hosts: tuple[str, ...], inventory: Path | None, ssh_config: Path | None, *, as_json: bool) -> None:
    """Show what each device runs, and how it is doing."""

    async def ask(host: Host) -> StoreStatus:
        async with connected(host, ssh_config=ssh_config) as device:
            return msgspec.json.decode(await device.edgeloop("status", "--json"), type=StoreStatus)

    results = _each(choose(hosts, inventory), ask)
    if as_json:
        told = {name: {"error": str(r)} if isinstance(r, Exception) else msgspec.to_builtins(r) for name, r in results}
        click.echo(json.dumps(told, indent=2))
    else:
        table = Table("device", "model", "state", "canary", "invoke", "previous")
        for name, result in results:
            table.add_row(name, *_row(result))
        console.out.print(table)
    _end(results)


def _row(status: StoreStatus | EdgeloopError) -> list[str]:
    if isinstance(status, EdgeloopError):
        return ["", f"[red]{console.plain(status)}[/]", "", "", ""]
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
    return [f"{one.name} {one.version}", console.plain(state), *shown, previous]


@deploy_command.command("rollback")
@_hosts
@click.option("--reason", default="rolled back by hand", show_default=True, help="Noted beside the model left behind.")
def rollback_command(hosts: tuple[str, ...], inventory: Path | None, ssh_config: Path | None, reason: str) -> None:
    """Make the previous model current again on each device."""
    results = _each(choose(hosts, inventory), lambda host: roll_back(host, reason, ssh_config=ssh_config))
    for name, result in results:
        if not isinstance(result, EdgeloopError):
            console.out.print(f"{name}: runs {console.plain(result)} again")
    _end(results)


@deploy_command.command("logs")
@_hosts
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

    _end(_each(chosen, read))


async def _copy_lines(device: Connection, command: str, before: str) -> None:
    async with device.process(command) as process:
        process.stdin.write_eof()
        while line := await process.stdout.readline():
            click.echo(before + console.printable(line.decode(errors="replace").rstrip("\n")))
        said = await process.stderr.read(4096)
        await process.wait_closed()
        if process.exit_status != 0 and "not found" in (text := said.decode(errors="replace")) and "journalctl" in text:
            raise DeviceError(f"{device.host.name}: it has no systemd journal; the agent logs to where it was started")
        if process.exit_status != 0:
            raise device.failure(process.exit_status or -1, said.decode(errors="replace"))


# --- captures ---


@deploy_command.command("pull")
@_hosts
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
    with console.counting("captures") as tell:
        results = _each(
            choose(hosts, inventory), lambda host: pull(host, out, keep=keep, ssh_config=ssh_config, tell=tell)
        )
    for name, result in results:
        if not isinstance(result, EdgeloopError):
            console.out.print(f"{name}: {console.plain(_pulled(result))}")
    _end(results)


def _pulled(result: Pulled) -> str:
    damaged = f"; {len(result.damaged)} are damaged and were left there" if result.damaged else ""
    had = f", {result.had} were here" if result.had else ""
    return f"{result.fetched} captures fetched into {result.folder}{had}, {result.removed} removed there{damaged}"


# --- setting up ---


@deploy_command.command("provision")
@_hosts
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
@click.option("--page", is_flag=True, help="Also what the live page needs.")
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
def provision_command(
    hosts: tuple[str, ...],
    inventory: Path | None,
    ssh_config: Path | None,
    config: Path,
    trust: tuple[Path, ...],
    bundle: Path | None,
    *,
    page: bool,
    dry_run: bool,
) -> None:
    """Make a fresh Raspberry Pi OS or Debian a device: user, packages, settings, service.

    The device needs no internet: its packages are gathered here. A second run changes nothing, and says so.
    """
    wanted = Wanted(config, trust, bundle, page)

    async def work(chosen: Sequence[Host], tell: Any) -> list[tuple[str, list[Said] | EdgeloopError]]:
        gathering = asyncio.Lock()
        return await _all(
            chosen,
            lambda host: provision(host, wanted, dry=dry_run, ssh_config=ssh_config, tell=tell, gathering=gathering),
        )

    chosen = choose(hosts, inventory)
    with console.working() as tell:
        results = _run(work(chosen, tell))
    _say(results, "nothing to change" if dry_run else "nothing changed")
    if not trust:
        console.err.print("no --trust KEY.pub: the devices take bundles nobody signed", style="yellow")


@deploy_command.command("deprovision")
@_hosts
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
    results = _each(
        chosen, lambda host: deprovision(host, dry=dry_run, discard=discard_captures, ssh_config=ssh_config)
    )
    _say(results, "nothing to remove")


def _say(results: Sequence[tuple[str, list[Said] | EdgeloopError]], nothing: str) -> None:
    for name, result in results:
        if isinstance(result, EdgeloopError):
            continue
        told = [said for said in result if said.state in ("changed", "would", "note")]
        for said in told:
            would = "would " if said.state == "would" else ""
            console.out.print(f"{name}: {would}{console.plain(said.text)}")
        if not any(said.state in ("changed", "would") for said in result):
            console.out.print(f"{name}: {nothing}")
    _end(results)


# --- many at a time ---


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    return asyncio.run(work)


async def _all(
    hosts: Sequence[Host], do: Callable[[Host], Awaitable[Result]]
) -> list[tuple[str, Result | EdgeloopError]]:
    """The same with each host, some at a time: its result, or why there is none."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(host: Host) -> tuple[str, Result | EdgeloopError]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(gate)
            try:
                return host.name, await do(host)
            except EdgeloopError as error:
                return host.name, error

    return list(await asyncio.gather(*(one(host) for host in hosts)))


def _each(hosts: Sequence[Host], do: Callable[[Host], Awaitable[Result]]) -> list[tuple[str, Result | EdgeloopError]]:
    return _run(_all(hosts, do))


def _end(results: Sequence[tuple[str, Any]]) -> None:
    """Say what failed, and end with 1 if anything did."""
    failed = [result for _, result in results if isinstance(result, EdgeloopError)]
    for error in failed:
        click.echo(f"edgeloop: {one_line(error)}", err=True)
    if failed:
        sys.exit(1)
