"""Runs work in parallel threads. This is efficient for reading and decoding images, because both release the GIL."""

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
    """Apply ``work`` to each item, using one thread per core, and yield the items and results in order.

    Args:
        work: called in a thread with each item.
        items: the items.
        ahead: maximum number of items that are in progress or waiting to be yielded. It limits the memory used. If it
            is less than the number of cores, the number of cores is used instead.

    Yields:
        Each item and its result. Close the generator to stop the threads early.
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
