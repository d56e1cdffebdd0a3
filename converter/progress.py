"""Progress bars of the longer steps, on the console they are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn

Advance = Callable[[], object]


@contextmanager
def steps(console: Console, what: str, total: int) -> Iterator[Advance]:
    """A bar of ``total`` steps; yields what advances it by one. It is full when the block ends, however early."""
    with Progress(*Progress.get_default_columns()[:-1], TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)
        progress.update(
            task, total=max(1, int(progress.tasks[0].completed)), completed=max(1, int(progress.tasks[0].completed))
        )
