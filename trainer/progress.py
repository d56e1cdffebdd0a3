"""Shows the progress of long work.

On a terminal the progress is shown as a bar, and elsewhere as a line of text every half minute. If the console is a
`CallbackConsole`, a function of the calling program is called instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from edge_agent.progress_lines import Advance, Progress, progress_calls, progress_lines

__all__ = ["Advance", "CallbackConsole", "status", "steps", "track"]

Item = TypeVar("Item")


class CallbackConsole(Console):
    """A console that prints nothing, and passes progress and messages to functions of the calling program.

    Args:
        on_progress: called with the progress of each stage; None to ignore progress.
        on_message: called with each message, one line of plain text; None to ignore messages.
    """

    def __init__(
        self, on_progress: Callable[[Progress], object] | None, on_message: Callable[[str], object] | None
    ) -> None:
        super().__init__(quiet=True)
        self.on_progress = on_progress or (lambda _progress: None)
        self._on_message = on_message or (lambda _message: None)

    def print(self, *objects: Any, markup: bool | None = None, **_style: Any) -> None:
        """Pass a message to ``on_message`` as plain text."""
        text = " ".join(map(str, objects))
        self._on_message(text if markup is False else Text.from_markup(text).plain)


@contextmanager
def steps(console: Console, label: str, total: int | None, *, done: int = 0) -> Iterator[Advance]:
    """Show the progress of ``total`` steps, of which ``done`` have been finished before.

    When the block ends, the bar is shown as full, even if fewer than ``total`` steps have been finished.

    Yields:
        A function to call when further steps are finished.
    """
    if isinstance(console, CallbackConsole):
        with progress_calls(label, total, console.on_progress, done=done) as advance:
            yield advance
        return
    if not _has_bars(console):
        with progress_lines(label, total, lambda line: _print_line(console, line), done=done) as advance:
            yield advance
        return
    columns = (*Bars.get_default_columns()[:-1], TimeElapsedColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console) as bars:
        task = bars.add_task(label, total=total, completed=done)

        def advance_bar(count: int = 1, *, detail: str = "") -> None:
            bars.update(task, advance=count, description=f"{label}, {detail}" if detail else label)

        yield advance_bar
        completed = max(1, int(bars.tasks[0].completed))
        bars.update(task, total=completed, completed=completed)


def track(items: Iterable[Item], label: str, *, total: int, console: Console) -> Iterator[Item]:
    """Yield the items, and show how many of ``total`` items are done. If ``total`` is 0, show nothing."""
    if not total:
        yield from items
        return
    with steps(console, label, total) as advance:
        for item in items:
            yield item
            advance()


@contextmanager
def status(console: Console, label: str) -> Iterator[None]:
    """Show that work of unknown duration is in progress."""
    if _has_bars(console):
        with console.status(label):
            yield
    else:
        with steps(console, label, None):
            yield


def _has_bars(console: Console) -> bool:
    return console.is_interactive or console.is_jupyter


def _print_line(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
