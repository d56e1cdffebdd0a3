"""Rolls out a bundle to many devices in waves. If too many devices of a wave fail, rolls this wave back and stops."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edge_agent.errors import ConfigError, EdgeloopError

from .inventory import Host
from .push import Choices, OnEvent, Outcome, Package, push, roll_back, rolled_back

WAVES = "1,10%,100%"
AT_ONCE = 16
"""Default for the maximum number of devices that are worked on at the same time.

More devices would only share the network connection of one desktop.
"""


@dataclass(frozen=True)
class Rollout:
    """Result of a rollout.

    Attributes:
        outcomes: outcome of every device that was tried, in order.
        untouched: names of the devices that were not tried.
        stopped: reason why the rollout was stopped; None if it was completed.
    """

    outcomes: tuple[Outcome, ...]
    untouched: tuple[str, ...] = ()
    stopped: str | None = None


def waves(hosts: Sequence[Host], plan: str = WAVES) -> list[list[Host]]:
    """Split hosts into waves without changing their order.

    Args:
        hosts: all hosts.
        plan: for each wave the total number of hosts, or the percentage of all hosts, that are done when the wave ends,
            separated by commas. Hosts that are left form a last wave.

    Raises:
        ConfigError: the plan is invalid.
    """
    ends = []
    for part in plan.split(","):
        text = part.strip()
        try:
            share = float(text.removesuffix("%"))
        except ValueError:
            share = math.nan
        if not share > 0 or (text.endswith("%") and share > 100):
            raise ConfigError(f"{text!r} is not the size of a wave; expected a plan such as {WAVES}")
        ends.append(math.ceil(len(hosts) * share / 100) if text.endswith("%") else math.ceil(share))
    done, cut = 0, []
    for end in (*ends, len(hosts)):
        if min(end, len(hosts)) > done:
            cut.append(list(hosts[done:end]))
            done = min(end, len(hosts))
    return cut


async def roll_out(
    hosts: Sequence[Host],
    what: Package,
    choices: Choices,
    *,
    plan: str,
    tolerate: float,
    on_event: OnEvent,
    wave: Callable[[int, list[Host]], Any] = lambda _number, _hosts: None,
    at_once: int = AT_ONCE,
) -> Rollout:
    """Push a bundle to one wave of devices after another. If too many devices of a wave fail, roll it back and stop.

    Args:
        hosts: all hosts; the first one is the canary.
        what: the bundle.
        choices: options of the push.
        plan: sizes of the waves, see `waves`.
        tolerate: fraction of the devices of a wave that may fail, 0 to 1. Failed devices return to their previous model
            in any case.
        on_event: called with each event of a device.
        wave: called with the number and the hosts of each wave when it begins.
        at_once: maximum number of devices that are worked on at the same time.
    """
    gate = asyncio.Semaphore(at_once)

    async def one(host: Host) -> Outcome:
        async with gate:
            return await push(host, what, choices, on_event)

    outcomes: list[Outcome] = []
    planned = waves(hosts, plan)
    for number, members in enumerate(planned, 1):
        wave(number, members)
        did = list(await asyncio.gather(*(one(host) for host in members)))
        failed = [outcome for outcome in did if not outcome.healthy]
        if len(failed) <= tolerate * len(members):
            outcomes += did
            continue
        reason = f"{len(failed)} of {len(members)} devices of wave {number} failed"
        outcomes += await asyncio.gather(
            *(_undone(host, outcome, reason, choices, gate) for host, outcome in zip(members, did, strict=True))
        )
        left = tuple(host.name for later in planned[number:] for host in later)
        return Rollout(tuple(outcomes), left, reason)
    return Rollout(tuple(outcomes))


async def _undone(host: Host, outcome: Outcome, reason: str, choices: Choices, gate: asyncio.Semaphore) -> Outcome:
    """Roll back a device of a failed wave to its previous model."""
    if outcome.state not in ("good", "active", "unheard") or not outcome.replaced:
        return outcome
    try:
        async with gate:
            now = await roll_back(host, f"rollout stopped: {reason}", ssh_config=choices.ssh_config)
    except EdgeloopError as error:
        return rolled_back(outcome, f"could not be rolled back: {error}")
    return rolled_back(outcome, f"runs {now} again")
