"""Trains on several GPUs or on several machines, using Keras' data parallelism with the JAX backend.

Every process runs the same program on its part of each batch, and all processes have the same weights. Only the first
process, the leader, trains the head, evaluates the model and writes files. The JAX backend is used because it is the
only backend with which `keras.distribution` can train on several machines.

This is the only module of the trainer that needs a particular backend for training.
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
        rank: number of this process; 0 is the leader.
        count: number of processes.
        devices: total number of devices of all processes.
        distributed: True if Keras divides batches among devices.
    """

    rank: int = 0
    count: int = 1
    devices: int = 1
    distributed: bool = False

    @property
    def leads(self) -> bool:
        """True if this process is the leader, which trains the head, evaluates the model and writes files."""
        return self.rank == 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """Distribute the models that are built and executed in the block over all devices."""
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
        """Run models in this process only, although the block is inside a block of `together`."""
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
        """Send the leader's arrays to all processes, and return them in every process.

        All processes must call this method with arrays of the same shapes and dtypes.
        """
        if self.count == 1:
            return list(arrays)
        from jax.experimental import multihost_utils

        # The arrays are sent as one message, because many small messages between CPUs can arrive out of order.
        mine = np.concatenate([np.frombuffer(array.tobytes(), np.uint8) for array in arrays])
        theirs = np.asarray(multihost_utils.broadcast_one_to_all(mine))
        ends = np.cumsum([array.nbytes for array in arrays])
        return [
            np.frombuffer(part.tobytes(), array.dtype).reshape(array.shape)
            for part, array in zip(np.split(theirs, ends[:-1]), arrays, strict=True)
        ]

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Raise a clear error if communication with another process fails in the block.

        Raises:
            TeamLostError: another process died or cannot be reached.
        """
        try:
            yield
        except Exception as error:
            if self.count > 1 and any(_LOST.search(str(one)) for one in _with_causes(error)):
                raise TeamLostError(
                    "another process of the training was lost; start all of them again with --resume"
                ) from error
            raise


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, its cause, the cause of that error, and so on.

    If an error has no cause, use the error that was being handled when it was raised. All these errors are needed,
    because Keras may raise another error while it handles the loss of a process.
    """
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


class TeamLostError(ResourceError):
    """Another process of the team died or cannot be reached. After this error, exit the process with `leave`."""


def leave(code: int) -> NoReturn:
    """Exit the process without shutting down JAX, because that would wait for lost processes and then abort."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


ALONE = Team()


def form_team(where: str | None) -> Team:
    """Join the other processes that train together. This must be called before Keras is imported.

    Args:
        where: None to train in this process only, on one device; ``devices`` to train in this process only, on all
            devices of the machine; ``HOST:PORT,RANK/COUNT`` if this is process number RANK of COUNT processes, of
            which process 0 listens at HOST:PORT.

    Raises:
        ConfigError: ``where`` has none of these forms.
        MissingExtraError: JAX is not installed.
        ResourceError: not all processes joined in time.
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
        # gloo is used for CPUs only; GPUs have their own collectives. Dispatch must not be asynchronous, because gloo
        # mixes up two messages that are sent at the same time.
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
                f"--distribute {where}: not all {count} processes joined within {JOIN_S} s; "
                "start all of them, and open the port"
            ) from error
    return Team(rank, count, jax.device_count(), distributed=True)


def agree(team: Team, checkpoint: Checkpoint, fingerprint: str) -> Checkpoint:
    """Return the leader's checkpoint in every process.

    Only the leader has the history of the checkpoint. The state of the checkpoint is sent to the other processes
    later, after the model has been built.

    Raises:
        DataError: the data of this process differs from the data of the leader.
    """
    if team.count == 1:
        return checkpoint
    digest = np.frombuffer(bytes.fromhex(fingerprint), np.uint8)
    mine = np.array([checkpoint.epoch, checkpoint.best_epoch])
    theirs, numbers, lowest, *best = team.share([digest, mine, checkpoint.lowest, *checkpoint.best])
    if not np.array_equal(theirs, digest):
        raise DataError("--distribute: the images differ from those of process 0; give all processes the same data")
    if team.leads:
        return checkpoint
    return replace(checkpoint, epoch=int(numbers[0]), best_epoch=int(numbers[1]), lowest=lowest, best=best)
