"""Consoles and progress bars of `edgeloop deploy`. Each device has its own bar; a large wave has one common bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from edge_agent.store.receive import PushEvent

from ..fleet.inventory import Host
from ..fleet.push import OnEvent, Package

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
MAX_BARS = 20
"""Maximum size of a wave in which each device has its own bar."""


def printable(text: object) -> str:
    """Replace control characters in text from a device, so that it cannot control the terminal."""
    return "".join(char if char.isprintable() or char == "\t" else "?" for char in str(text))


def plain(text: object) -> str:
    """Make text from a device printable and escape Rich markup in it."""
    return escape(printable(text))


@contextmanager
def pushing(what: Package, *, quiet: bool) -> Iterator[tuple[OnEvent, Callable[[int, list[Host]], Any]]]:
    """Show the progress of a rollout.

    Yields:
        A callback for the events of devices, and a callback for the start of a wave.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(30), TransferSpeedColumn())
    with Progress(*columns, TextColumn("{task.fields[at]}"), console=err, disable=quiet or not err.is_terminal) as bars:
        lines: dict[str, TaskID] = {}

        def wave(number: int, hosts: list[Host]) -> None:
            for line in lines.values():
                bars.update(line, visible=False)
            lines.clear()
            shown = [host.name for host in hosts] if len(hosts) <= MAX_BARS else []
            for name in shown:
                lines[name] = bars.add_task(plain(name), total=what.size, at="connecting")
            if not shown:
                lines[""] = bars.add_task(f"wave {number}", total=len(hosts) * what.size, at=f"{len(hosts)} devices")
            have.clear()

        have: dict[str, int] = {}

        def on_event(name: str, event: PushEvent) -> None:
            if event.event == "have":
                have[name] = event.done
            if "" in lines:
                bars.update(lines[""], completed=sum(have.values()))
            elif name in lines:
                bars.update(lines[name], completed=have.get(name, 0), at=_at(event))

        yield on_event, wave


def _at(event: PushEvent) -> str:
    if event.event == "have":
        return "sending" if event.done < event.of else "unpacking"
    if event.event == "proving":
        return f"canary test {event.done}/{event.of}"
    return {"installed": "installed", "probation": "on probation, its first 500 frames"}.get(event.event, event.event)


@contextmanager
def counting(what: str) -> Iterator[Callable[[str, int, int], Any]]:
    """Show for each device a bar that counts.

    Yields:
        A callback that takes the name of the device, the count and the total.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(30),
        TextColumn("{task.completed}/{task.total}"),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal) as bars:
        lines: dict[str, TaskID] = {}

        def on_progress(name: str, done: int, of: int) -> None:
            if name not in lines:
                lines[name] = bars.add_task(f"{plain(name)}: {what}")
            bars.update(lines[name], completed=done, total=of)

        yield on_progress


@contextmanager
def working() -> Iterator[Callable[[str, str, int, int], Any]]:
    """Show for each device a line with its current step.

    Yields:
        A callback that takes the name of the device, the step, the bytes done and the total bytes.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(30), TextColumn("{task.fields[at]}"))
    with Progress(*columns, console=err, disable=not err.is_terminal) as bars:
        lines: dict[str, TaskID] = {}

        def on_progress(name: str, at: str, done: int, of: int) -> None:
            if name not in lines:
                lines[name] = bars.add_task(plain(name), total=None, at="")
            size = f" {done / 1e6:.0f} of {of / 1e6:.0f} MB" if of else ""
            bars.update(lines[name], completed=done, total=of or None, at=f"{plain(at)}{size}")

        yield on_progress


@contextmanager
def preparing() -> Iterator[Callable[[str, int, int], Any]]:
    """Show a bar for each step of preparing a card.

    Yields:
        A callback that takes the step, the amount done and the total amount.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(30), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, TimeRemainingColumn(), console=err, disable=not err.is_terminal) as bars:
        lines: dict[str, TaskID] = {}

        def on_progress(doing: str, done: int, of: int) -> None:
            if doing not in lines:
                lines[doing] = bars.add_task(doing, total=None)
            bars.update(lines[doing], completed=done, total=of or None)

        yield on_progress
