"""Progress bars of the longer steps, on the console they are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def steps(console: Console, what: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar of ``total`` steps.

    Yields:
        A function that advances it by one; with ``said=`` it also renames it. The bar is full when
        the block ends, however early.
    """
    columns = (*Progress.get_default_columns()[:-1], TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total)

        def advance(count: int = 1, *, said: str = what) -> None:
            progress.update(task, advance=count, description=said)

        yield advance
        progress.update(task, total=progress.tasks[0].completed)
