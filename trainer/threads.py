"""Work on many things at once, in threads: reading and decoding images release Python's lock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from edge_agent.inference.interpreter import cores

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], *, ahead: int
) -> Generator[tuple[Item, Result], None, None]:
    """Each item with ``work`` of it, in order, on all cores.

    Args:
        work: called in a thread for each item.
        items: what there is to do.
        ahead: most items under way or waiting to be taken, so that memory is bounded; at least one a core are.

    Yields:
        As soon as the next one in order is done. Close the generator to be sure that no thread works on.
    """
    workers = cores()
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(work, item)))
                if len(waiting) >= max(ahead, workers):
                    first, future = waiting.popleft()
                    yield first, future.result()
            for first, future in waiting:
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)
