"""Training on several GPUs, or on several machines: Keras' data parallelism on the JAX backend.

Every process runs the same program on its share of each batch, and all hold the same weights. The
first process alone trains the head, judges, and writes; the others follow it. JAX, because Keras'
distribution has no other backend that trains across machines.

The only module of the trainer that names a backend.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from edge_agent.errors import ConfigError, DataError, MissingExtraError, ResourceError

from .checkpoint import Checkpoint

_TEAM = re.compile(r"(?P<address>[^,\s]+:\d+),(?P<rank>\d+)/(?P<count>\d+)")
_LOST = re.compile(r"gloo|nccl|UNAVAILABLE|heartbeat|coordination", re.IGNORECASE)
JOIN_S = 300
HEARTBEAT_S = 30


@dataclass(frozen=True)
class Team:
    """The processes that train together.

    Attributes:
        rank: of this one; 0 leads.
        count: of all.
        devices: of all processes together.
        distributed: whether Keras spreads batches over devices; else all the rest is moot.
    """

    rank: int = 0
    count: int = 1
    devices: int = 1
    distributed: bool = False

    @property
    def leads(self) -> bool:
        """Whether this process trains the head, judges and writes."""
        return self.rank == 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is built and run in the block is spread over all devices."""
        if not self.distributed:
            yield
            return
        import keras

        keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
        try:
            yield
        finally:
            keras.distribution.set_distribution(None)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Within `together`: what runs in this block runs in this process alone."""
        if not self.distributed:
            yield
            return
        import keras

        shared = keras.distribution.distribution()
        keras.distribution.set_distribution(None)
        try:
            yield
        finally:
            keras.distribution.set_distribution(shared)

    def share(self, arrays: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """The leader's arrays, in every process; all must call it with arrays of the same shapes."""
        if self.count == 1:
            return list(arrays)
        from jax.experimental import multihost_utils

        # As one message: the many small ones of a list can overtake one another between CPUs.
        mine = np.concatenate([np.frombuffer(array.tobytes(), np.uint8) for array in arrays])
        theirs = np.asarray(multihost_utils.broadcast_one_to_all(mine))
        ends = np.cumsum([array.nbytes for array in arrays])
        return [
            np.frombuffer(part.tobytes(), array.dtype).reshape(array.shape)
            for part, array in zip(np.split(theirs, ends[:-1]), arrays, strict=True)
        ]

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Turn the failure of a collective in the block into words.

        Raises:
            TeamLostError: another process is gone.
        """
        try:
            yield
        except Exception as error:
            if self.count > 1 and _LOST.search(str(error)):
                raise TeamLostError(
                    "another process of the training is gone; start all of them again with --resume"
                ) from error
            raise


class TeamLostError(ResourceError):
    """Another process of the team died or cannot be reached; see `leave`."""


def leave(code: int) -> NoReturn:
    """End this process without JAX's farewell, which waits for those that are gone, and then aborts."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


ALONE = Team()


def form_team(where: str | None) -> Team:
    """Join the other processes; before Keras is imported.

    Args:
        where: None for this process on one device; ``devices`` for this process on all of the machine's;
            ``HOST:PORT,RANK/COUNT`` for one of COUNT processes, of which number 0 is at HOST:PORT.

    Raises:
        ConfigError: none of these.
        MissingExtraError: JAX is not installed.
        ResourceError: the others do not come.
    """
    if where is None:
        return ALONE
    found = _TEAM.fullmatch(where)
    rank, count = (int(found["rank"]), int(found["count"])) if found else (0, 1)
    if (not found and where != "devices") or not 0 <= rank < count:
        raise ConfigError(
            f"--distribute {where}: expected devices, or HOST:PORT,RANK/COUNT, such as 10.0.0.5:7000,0/2 "
            "for the first of two processes"
        )
    os.environ["KERAS_BACKEND"] = "jax"
    try:
        import jax
    except ImportError as error:
        raise MissingExtraError("--distribute", "jax", error.name) from error
    if found:
        # Between CPUs; GPUs have their own. Two of gloo's messages on their way at once get mixed up.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        try:
            jax.distributed.initialize(
                found["address"],
                count,
                rank,
                initialization_timeout=JOIN_S,
                heartbeat_timeout_seconds=HEARTBEAT_S,
            )
        except RuntimeError as error:
            raise ResourceError(
                f"--distribute {where}: the {count} processes did not meet within {JOIN_S} s; "
                "start all of them, and open the port"
            ) from error
    return Team(rank, count, jax.device_count(), distributed=True)


def agree(team: Team, checkpoint: Checkpoint, fingerprint: str) -> Checkpoint:
    """The leader's checkpoint, in every process.

    Its history stays with the leader, and its state is shared when the model it belongs to is built.

    Raises:
        DataError: this process sees other data than the leader.
    """
    if team.count == 1:
        return checkpoint
    digest = np.frombuffer(bytes.fromhex(fingerprint), np.uint8)
    mine = np.array([checkpoint.epoch, checkpoint.best_epoch])
    theirs, numbers, lowest, *best = team.share([digest, mine, checkpoint.lowest, *checkpoint.best])
    if not np.array_equal(theirs, digest):
        raise DataError("--distribute: the images here are not those of process 0; give all processes the same data")
    if team.leads:
        return checkpoint
    return replace(checkpoint, epoch=int(numbers[0]), best_epoch=int(numbers[1]), lowest=lowest, best=best)
