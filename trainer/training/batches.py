"""Rows on disk to batches, fetched ahead of the network."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from edge_agent.errors import ConfigError

if TYPE_CHECKING:
    import keras

AHEAD = 4
"""Batches fetched in advance: enough to ride out a slow disk, 25 MB at 32 images of 256x256."""


class Rows(Protocol):
    """Anything that gives the rows at some places as an array: `trainer.data.PixelRows`, a memory map."""

    def __getitem__(self, which: npt.NDArray[np.intp], /) -> Any: ...


class Batches:
    """Batches to learn from, in an order of their own every epoch; what does not fill a batch waits for another epoch.

    The order depends on the seed and the epoch alone, so an interrupted training goes on as if it had not been.
    (Keras' own `PyDataset` is shuffled between epochs, and by then it may have fetched from the next one.)

    Args:
        rows: what to take from.
        places: of the rows to learn from.
        truth: (all rows,) int class indices.
        size: rows a batch.
        classes: how many there are.
        seed: of the order.
        part: which part of every batch is fetched here, and of how many: (0, 1) is all of it.
        devices: how many share every batch evenly; it is made smaller until they can.

    Raises:
        ConfigError: there are more devices than images for them.
    """

    def __init__(
        self,
        rows: Rows,
        places: npt.NDArray[np.intp],
        truth: npt.NDArray[np.intp],
        *,
        size: int,
        classes: int,
        seed: int,
        part: tuple[int, int] = (0, 1),
        devices: int = 1,
    ) -> None:
        self._rows, self._places, self._truth = rows, places, truth
        self._size = min(size, len(places)) // devices * devices
        if not self._size:
            raise ConfigError(
                f"--distribute: {devices} devices, and {min(size, len(places))} images for a step; "
                "raise --batch-size, or distribute over fewer"
            )
        self._seed, self._part = seed, part
        self._one_hot = np.eye(classes, dtype=np.float32)

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self._places) // self._size

    def epoch(self, number: int) -> Iterator[tuple[Any, npt.NDArray[np.float32]]]:
        """The rows and their one-hot truth, batch by batch."""
        order = np.random.default_rng((self._seed, number)).permutation(self._places)
        mine = self._size // self._part[1]
        for start in range(0, len(self) * self._size, self._size):
            which = order[start + mine * self._part[0] :][:mine]
            yield self._rows[which], self._one_hot[self._truth[which]]

    def for_fit(self, epoch: int) -> Iterator[Any]:
        """Endless batches for Keras' `fit` of a model that takes the truth as an input, too, from an epoch on."""
        endless = (batch for number in count(epoch) for batch in self.epoch(number))
        return fetched_ahead(({"pixels": pixels, "truth": truth}, truth) for pixels, truth in endless)


def predict(model: keras.Model, rows: Rows, places: npt.NDArray[np.intp], size: int) -> npt.NDArray[np.float32]:
    """The model's outputs for some rows, (places, outputs) float32, in that order."""
    # Filled up to whole batches: another shape would compile the model again.
    filled = np.concatenate([places, np.repeat(places[-1:], -len(places) % size)]).reshape(-1, size)
    batches = fetched_ahead((rows[some],) for some in filled)
    outputs: npt.NDArray[np.float32] = model.predict(batches, steps=len(filled), verbose=0)
    return outputs[: len(places)]


def fetched_ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches, made by another thread a little before they are asked for."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as worker:
        waiting: deque[Future[Any]] = deque(worker.submit(next, batches, None) for _ in range(AHEAD))
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(worker.submit(next, batches, None))
            yield batch
