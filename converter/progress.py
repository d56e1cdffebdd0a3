"""Progress of long work: a bar on a terminal, otherwise a plain line every half minute."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn

from edge_agent.progress_lines import Advance, progress_lines

__all__ = ["Advance", "steps", "track"]

Item = TypeVar("Item")


@contextmanager
def steps(console: Console, label: str, total: int | None, *, done: int = 0) -> Iterator[Advance]:
    """Show the progress of ``total`` steps, of which ``done`` were finished before.

    Yields:
        A function that adds finished steps. The bar is full when the block ends, however early.
    """
    if not _has_bars(console):
        with progress_lines(label, total, lambda line: _print_line(console, line), done=done) as advance:
            yield advance
        return
    columns = (*Progress.get_default_columns()[:-1], TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(label, total=total, completed=done)

        def advance_bar(count: int = 1, *, detail: str = "") -> None:
            progress.update(task, advance=count, description=f"{label}, {detail}" if detail else label)

        yield advance_bar
        completed = max(1, int(progress.tasks[0].completed))
        progress.update(task, total=completed, completed=completed)


def track(items: Iterable[Item], label: str, *, total: int, console: Console) -> Iterator[Item]:
    """Yield the items, and show how many of ``total`` are done; an empty pass shows nothing."""
    if not total:
        yield from items
        return
    with steps(console, label, total) as advance:
        for item in items:
            yield item
            advance()


def _has_bars(console: Console) -> bool:
    return console.is_interactive or console.is_jupyter


def _print_line(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
