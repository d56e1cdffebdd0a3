"""Parallel work in threads; reading and decoding images release Python's global lock."""

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
    """Apply ``work`` to each item in threads, one per core, and yield the items and results in order.

    Args:
        work: called in a thread with each item.
        items: the items.
        ahead: maximum number of items in progress or waiting to be yielded, which bounds the memory; at least one
            per core is used.

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
