"""`edgeloop deploy push`: rolls out a bundle to many devices in waves."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import click

from ..fleet.inventory import choose
from ..fleet.push import Choices, Outcome, package
from ..fleet.rollout import AT_ONCE, WAVES, Rollout, roll_out
from . import _console
from ._hosts import takes_hosts

_COLOURS = {"good": "green", "active": "green", "stored": "green", "rolled back": "yellow", "unheard": "yellow"}


@click.command("push")
@click.argument("bundle", type=click.Path(path_type=Path))
@takes_hosts
@click.option(
    "--waves", default=WAVES, show_default=True, help="Total number or share of devices done at the end of each wave."
)
@click.option(
    "--tolerate",
    type=click.FloatRange(0, 100),
    default=10,
    show_default=True,
    help="Percentage of a wave that may fail.",
)
@click.option(
    "--at-once",
    type=click.IntRange(1, 256),
    default=AT_ONCE,
    show_default=True,
    help="Maximum number of devices to work on at the same time.",
)
@click.option("--no-activate", is_flag=True, help="Store the bundle without activating it.")
@click.option("--no-wait", is_flag=True, help="Do not wait for the probation, the model's first 500 frames.")
@click.option(
    "--timeout-s",
    type=click.FloatRange(1, 86400),
    default=300,
    show_default=True,
    help="Maximum time to wait for the probation, in seconds.",
)
@click.option("--force", is_flag=True, help="Also send the bundle to devices that rolled it back before.")
@click.option("--allow-downgrade", is_flag=True, help="Also send the bundle to devices that run a newer version.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
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
    """Send BUNDLE to devices in waves, the first device alone. Each device runs the canary test and activates it.

    Only the bytes that a device lacks are sent. A device on which the model fails rolls it back automatically. If too
    many devices of a wave fail, the whole wave is rolled back and the rollout stops.
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
    with _console.pushing(what, quiet=as_json) as (on_event, wave):
        rollout = asyncio.run(
            roll_out(
                chosen,
                what,
                choices,
                plan=waves,
                tolerate=tolerate / 100,
                on_event=on_event,
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
        left = f"; {len(rollout.untouched)} devices were not started" if rollout.untouched else ""
        _console.err.print(f"edgeloop: stopped: {rollout.stopped}{left}")


def _facts(outcome: Outcome) -> str:
    if outcome.state == "unreachable":
        return outcome.text
    moved = f"{outcome.moved_bytes / 1e6:.2f} MB sent" if outcome.moved_bytes else "nothing to send"
    return f"{outcome.text}; {moved}, {outcome.took_s:.1f} s"
