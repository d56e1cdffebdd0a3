"""Threads that classify, each with an interpreter of its own, and the images that wait for them."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from contextlib import ExitStack
from math import ceil
from typing import Self

from ..bundle import Bundle
from ..errors import EdgeloopError, ImageError
from ..images import decode_image
from ..inference.classifier import Classifier, Result
from ..inference.interpreter import cores

log = logging.getLogger(__name__)

MOST_WAITING = 128
"""Images; more are refused, for whoever sent them would have given up before their turn."""
BATCH = 8
"""Images a thread takes at once, at most: with what waits shared out evenly, it wakes the server once for all of
them. The network itself takes them one by one: eight in one invoke took as long as eight invokes."""


class BusyError(EdgeloopError):
    """More images wait than will be answered in good time."""


class _Waiting:
    def __init__(self, data: bytes, loop: asyncio.AbstractEventLoop) -> None:
        self.data, self.loop = data, loop
        self.future: asyncio.Future[Result] = loop.create_future()


class Workers:
    """One thread a core, each with the model loaded for itself. A context manager.

    Args:
        bundle: verified.
        count: threads; one a core when None.
        delegate: external delegate; as of `Classifier`.

    Raises:
        BundleError, ModelError: on entering, when the model cannot be loaded.
    """

    def __init__(self, bundle: Bundle, *, count: int | None = None, delegate: str | None = None) -> None:
        self._bundle, self._delegate = bundle, delegate
        self.count = count or cores()
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        """Load the models, one after the other: loading hides what the runtime prints, for the whole process."""
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
        """Answer nobody more."""
        for _thread in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(5)
        if not any(thread.is_alive() for thread in self._threads):
            self._held.close()

    @property
    def alive(self) -> bool:
        """Whether all of them are at work."""
        return all(thread.is_alive() for thread in self._threads)

    async def classify(self, data: bytes) -> Result:
        """Decode an image file and classify it.

        Raises:
            ImageError: not a usable image.
            BusyError: too many wait already.
        """
        if self._queue.qsize() >= MOST_WAITING:
            raise BusyError(f"{MOST_WAITING} images are waiting; try again, or send them to several devices")
        waiting = _Waiting(data, asyncio.get_running_loop())
        self._queue.put(waiting)
        return await waiting.future

    def _work(self, classifier: Classifier) -> None:
        while (batch := self._taken()) is not None:
            answers = [(waiting, _answer(classifier, waiting.data)) for waiting in batch]
            try:
                batch[0].loop.call_soon_threadsafe(_deliver, answers)
            except RuntimeError:  # the server has ended
                return

    def _taken(self) -> list[_Waiting] | None:
        """What this thread does next; None at the end."""
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


def _answer(classifier: Classifier, data: bytes) -> Result | Exception:
    try:
        return classifier.classify(decode_image(data, "the image"))
    except ImageError as error:
        return error
    except Exception as error:
        log.exception("an image of %d bytes could not be classified", len(data))
        return error


def _deliver(answers: list[tuple[_Waiting, Result | Exception]]) -> None:
    for waiting, answer in answers:
        if waiting.future.done():  # whoever asked has gone
            continue
        if isinstance(answer, Exception):
            waiting.future.set_exception(answer)
        else:
            waiting.future.set_result(answer)
