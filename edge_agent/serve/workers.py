"""Worker threads that classify images, each with its own interpreter, and the queue of waiting images."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import ceil
from typing import Self

from ..bundle import Bundle
from ..errors import EdgeloopError, ImageError
from ..image_headers import read_header
from ..images import MAX_DECODING_BYTES, decode_image
from ..inference.classifier import Classifier, Result
from ..inference.interpreter import cores

log = logging.getLogger(__name__)

MOST_WAITING = 128
"""Largest number of waiting images. More are refused, as their clients would time out before their turn."""
BATCH = 8
"""Largest number of images that a thread takes from the queue at once.

The waiting images are divided evenly among the threads, and a thread wakes the event loop once per batch. The model
itself processes images one by one: one invoke with eight images took as long as eight invokes."""


class BusyError(EdgeloopError):
    """Too many images are waiting."""


class _MemoryBudget:
    """Makes threads wait while the others use too much memory. One thread alone may always go on."""

    def __init__(self, total: int) -> None:
        self._total, self._used = total, 0
        self._changed = threading.Condition()

    @contextmanager
    def take(self, amount: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + amount <= self._total)
            self._used += amount
        try:
            yield
        finally:
            with self._changed:
                self._used -= amount
                self._changed.notify_all()


class _Waiting:
    def __init__(self, data: bytes, loop: asyncio.AbstractEventLoop) -> None:
        self.data, self.loop = data, loop
        self.future: asyncio.Future[Result] = loop.create_future()


class Workers:
    """Worker threads, each with its own copy of the model. A context manager.

    Args:
        bundle: a verified bundle.
        count: number of threads; by default one per core.
        delegate: external delegate; see `Classifier`.

    Raises:
        BundleError, ModelError: on entering, if the model cannot be loaded.
    """

    def __init__(self, bundle: Bundle, *, count: int | None = None, delegate: str | None = None) -> None:
        self._bundle, self._delegate = bundle, delegate
        self.count = count or cores()
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._decoding = _MemoryBudget(MAX_DECODING_BYTES)

    def __enter__(self) -> Self:
        """Load the models one after the other, because loading redirects standard error for the whole process."""
        with ExitStack() as held:
            loaded = [
                held.enter_context(Classifier.from_bundle(self._bundle, threads=1, delegate=self._delegate))
                for _ in range(self.count)
            ]
            self._held = held.pop_all()
        for number, classifier in enumerate(loaded):
            thread = threading.Thread(target=self._work, args=(classifier,), name=f"worker {number}", daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the threads and free the models."""
        for _thread in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(5)
        if not any(thread.is_alive() for thread in self._threads):
            self._held.close()

    @property
    def alive(self) -> bool:
        """Whether all threads are running."""
        return all(thread.is_alive() for thread in self._threads)

    async def classify(self, data: bytes) -> Result:
        """Decode an image file and classify it.

        Raises:
            ImageError: the data is not a usable image.
            BusyError: too many images are waiting.
        """
        if self._queue.qsize() >= MOST_WAITING:
            raise BusyError(f"{MOST_WAITING} images are waiting; try again later, or use more devices")
        waiting = _Waiting(data, asyncio.get_running_loop())
        self._queue.put(waiting)
        return await waiting.future

    def _work(self, classifier: Classifier) -> None:
        while (batch := self._next_batch()) is not None:
            results = [(waiting, self._classify(classifier, waiting.data)) for waiting in batch]
            try:
                batch[0].loop.call_soon_threadsafe(_deliver, results)
            except RuntimeError:  # the server has ended
                return

    def _next_batch(self) -> list[_Waiting] | None:
        """Wait for images and return the next batch; None when the workers stop."""
        first = self._queue.get()
        if first is None:
            return None
        batch = [first]
        while len(batch) < min(BATCH, ceil((self._queue.qsize() + len(batch)) / self.count)):
            try:
                more = self._queue.get_nowait()
            except queue.Empty:
                break
            if more is None:
                self._queue.put(None)
                break
            batch.append(more)
        return batch

    def _classify(self, classifier: Classifier, data: bytes) -> Result | Exception:
        try:
            # Until the image is classified, as it is kept until then.
            with self._decoding.take(read_header(data).decoding_bytes()):
                return classifier.classify(decode_image(data, "the image"))
        except ImageError as error:
            return error
        except Exception as error:
            log.exception("an image of %d bytes could not be classified", len(data))
            return error


def _deliver(results: list[tuple[_Waiting, Result | Exception]]) -> None:
    for waiting, result in results:
        if waiting.future.done():  # the client has disconnected
            continue
        if isinstance(result, Exception):
            waiting.future.set_exception(result)
        else:
            waiting.future.set_result(result)
