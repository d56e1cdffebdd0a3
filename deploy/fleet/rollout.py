"""A bundle to many devices in waves, stopped and taken back where a wave does badly."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edge_agent.errors import ConfigError, EdgeloopError

from .inventory import Host
from .push import Choices, Outcome, Package, Tell, push, roll_back, rolled_back

WAVES = "1,10%,100%"
AT_ONCE = 16
"""Devices worked on at a time: more would share one desktop's network."""


@dataclass(frozen=True)
class Rollout:
    """How it went.

    Attributes:
        outcomes: of every device that was tried, in order.
        untouched: those it never came to.
        stopped: why; None where it went through.
    """

    outcomes: tuple[Outcome, ...]
    untouched: tuple[str, ...] = ()
    stopped: str | None = None


def waves(hosts: Sequence[Host], plan: str = WAVES) -> list[list[Host]]:
    """Hosts cut into waves, in their order.

    Args:
        hosts: all of them.
        plan: for each wave how many are done when it ends: a number, or a part of all; what is left makes a last one.

    Raises:
        ConfigError: the plan is none.
    """
    ends = []
    for part in plan.split(","):
        text = part.strip()
        try:
            share = float(text.removesuffix("%"))
        except ValueError:
            share = math.nan
        if not share > 0 or (text.endswith("%") and share > 100):
            raise ConfigError(f"{text!r} is no size of a wave; expected a plan such as {WAVES}")
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
    tell: Tell,
    wave: Callable[[int, list[Host]], Any] = lambda _number, _hosts: None,
    at_once: int = AT_ONCE,
) -> Rollout:
    """Push to each wave in turn; a wave with too many failures is rolled back, and no further one is begun.

    Args:
        hosts: all of them; the first is the canary.
        what: the bundle.
        choices: of the push.
        plan: as `waves` takes it.
        tolerate: part of a wave, 0 to 1, that may fail; the devices that do are back on their old model anyway.
        tell: told each device's events.
        wave: told when one begins.
        at_once: devices worked on at a time.
    """
    gate = asyncio.Semaphore(at_once)

    async def one(host: Host) -> Outcome:
        async with gate:
            return await push(host, what, choices, tell)

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
            *(_taken_back(host, outcome, reason, choices, gate) for host, outcome in zip(members, did, strict=True))
        )
        left = tuple(host.name for later in planned[number:] for host in later)
        return Rollout(tuple(outcomes), left, reason)
    return Rollout(tuple(outcomes))


async def _taken_back(host: Host, outcome: Outcome, reason: str, choices: Choices, gate: asyncio.Semaphore) -> Outcome:
    """A device of a wave that did badly, back on the model it had."""
    if outcome.state not in ("good", "active", "unheard") or not outcome.replaced:
        return outcome
    try:
        async with gate:
            now = await roll_back(host, f"roll-out stopped: {reason}", ssh_config=choices.ssh_config)
    except EdgeloopError as error:
        return rolled_back(outcome, f"could not be rolled back: {error}")
    return rolled_back(outcome, f"runs {now} again")
