"""Executors: apply a function to many items, in this process or on Ray workers, on one machine or a cluster."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from rich.progress import track as rich_track

from edge_agent.errors import EdgeloopError, MissingExtraError, ResourceError
from edge_agent.native_stderr import native_noise_hidden

from ..progress import track

_TASKS = 32
"""Number of tasks per worker: enough that all workers end at the same time, few enough for negligible overhead."""
_ANSWER_S = 10.0
_STORE_BYTES = 512 * 2**20
"""Size of Ray's shared memory on one machine, about a hundred times the data that is passed between processes."""


class Executor(Protocol):
    """Applies a function to items."""

    def __call__(
        self, function: Callable[..., Any], items: Sequence[Any], description: str, *, factory: bool = False
    ) -> list[Any]:
        """Apply a function to each item, and return the results in the order of the items.

        BLAS runs in one thread, so that the results are identical to the bit with every executor.

        Args:
            function: called with each item.
            items: the items.
            description: text of the progress bar.
            factory: call ``function`` once in each worker, without arguments, and apply the function it returns;
                the workers use GPUs if there are any.

        Raises:
            EdgeloopError: raised by ``function``; from another process it is a `ResourceError` with the same message.
            ResourceError: a worker process died repeatedly.
        """
        ...


def local_executor(console: Console) -> Executor:
    """Return an executor that runs everything in this process."""

    def execute(
        function: Callable[..., Any], items: Sequence[Any], description: str, *, factory: bool = False
    ) -> list[Any]:
        if factory:
            function = function()
        with _one_thread():
            return [function(item) for item in _with_progress(items, description, len(items), console, factory=factory)]

    return execute


@contextmanager
def ray_executor(console: Console, *, workers: int | None, cluster: str | None = None) -> Iterator[Executor]:
    """Yield an executor that uses Ray Data.

    Args:
        console: console for the progress.
        workers: number of processes; None for one per core.
        cluster: address of a running cluster; None starts workers on this machine; other machines cannot connect to
            them.

    Raises:
        MissingExtraError: Ray is not installed.
        ResourceError: the cluster cannot be reached, or Ray does not start on this machine.
    """
    with ExitStack() as stack:
        ray = _start(stack, workers, cluster)
        found = ray.cluster_resources()
        cores, gpus = max(1, int(found.get("CPU", 1))), int(found.get("GPU", 0))
        # More workers than cores would wait forever.
        count = min(workers or cores, cores)
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)

        def execute(
            function: Callable[..., Any], items: Sequence[Any], description: str, *, factory: bool = False
        ) -> list[Any]:
            size = min(gpus if factory and gpus else count, len(items))
            # Functions from a factory are slow, so one item per task keeps the progress bar moving. For fast ones the
            # overhead per task would dominate.
            portion = 1 if factory else -(-len(items) // (_TASKS * size))
            starts = range(0, len(items), portion)
            rows = ray.data.from_items(
                [{"start": start, "items": _Box(items[start : start + portion])} for start in starts],
                override_num_blocks=min(len(starts), _TASKS * size),
            )
            if factory:
                done = rows.map_batches(
                    _Worker,
                    fn_constructor_args=(function,),
                    batch_size=1,
                    compute=ray.data.ActorPoolStrategy(size=size),
                    num_gpus=1 if gpus else 0,
                )
            else:
                done = rows.map_batches(
                    _process_batch, fn_args=(function,), batch_size=1, compute=ray.data.TaskPoolStrategy(size=size)
                )
            results: dict[int, list[Any]] = {}
            failure: _Failure | None = None
            try:
                # Closed at once, so that all workers stop when one has failed.
                with closing(iter(done.iter_rows())) as arriving:
                    for row in _with_progress(arriving, description, len(starts), console, factory=factory):
                        found = row["results"].content
                        if isinstance(found, _Failure):
                            failure = found
                            break
                        results[row["start"]] = found
            except Exception as error:
                raise ResourceError(f"Ray failed: {_last_line(error)}; run the same command again") from error
            if failure is not None:
                raise ResourceError(failure.message)
            return [result for start in starts for result in results[start]]

        yield execute


def _with_progress(
    items: Iterable[Any], description: str, total: int, console: Console, *, factory: bool
) -> Iterable[Any]:
    """Iterate with a progress bar; only the bar of a long pass, with a factory, stays on the screen."""
    if factory or not console.is_interactive:
        return track(items, description, total=total, console=console)
    return rich_track(items, description, total=total, console=console, transient=True)


@dataclass(frozen=True)
class _Box:
    """Wrapper for data that Ray must not convert to the numbers, strings or lists of a column."""

    content: Any


@dataclass(frozen=True)
class _Failure:
    """Message of an error; not every exception survives pickling."""

    message: str


def _process_batch(batch: dict[str, Any], function: Callable[[Any], Any]) -> dict[str, Any]:
    """Process a batch that consists of one portion of items."""
    found: list[Any] | _Failure
    try:
        with _one_thread():
            found = [function(item) for item in batch["items"][0].content]
    except EdgeloopError as error:
        found = _Failure(str(error))
    except Exception as error:  # noqa: BLE001  any error is reported in the main process
        found = _Failure(f"a worker failed: {error!r}; finished work is kept, run the same command again")
    column = np.empty(1, object)
    column[0] = _Box(found)
    return {"start": batch["start"], "results": column}


class _Worker:
    """Worker state, created once per worker; the factory is called with the first batch, where errors are reported."""

    def __init__(self, factory: Callable[[], Callable[[Any], Any]]) -> None:
        # A worker has one core, but TensorFlow would start a thread for every core of the machine.
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
        self._factory = factory
        self._function: Callable[[Any], Any] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return _process_batch(batch, self._process_item)

    def _process_item(self, item: Any) -> Any:
        if self._function is None:
            self._function = self._factory()
        return self._function(item)


def _one_thread() -> Any:
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, user_api="blas")


def _start(stack: ExitStack, workers: int | None, cluster: str | None) -> Any:
    # Ray sends usage statistics to its developers unless this is disabled.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray's C++ parts print warnings regardless of the logging level below.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    if cluster is None:
        # Without this Ray listens on all addresses of the machine, not only on loopback; the name is historical.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # Reject connections of other users of this machine.
        os.environ["RAY_AUTH_MODE"] = "token"
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError("working on several processes", "scale", error.name) from error
    if cluster is not None:
        _check_address(cluster)
    local = {}
    if cluster is None:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
        local = {
            "num_cpus": workers,
            "_node_ip_address": "127.0.0.1",
            "_temp_dir": folder,
            "object_store_memory": _STORE_BYTES,
        }
    try:
        with native_noise_hidden():
            ray.init(
                address=cluster or "local",
                include_dashboard=False if cluster is None else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **local,
            )
    except Exception as error:
        where = f"the cluster {cluster}" if cluster else "Ray"
        raise ResourceError(f"{where} cannot be used: {_last_line(error)}") from error
    stack.callback(ray.shutdown)
    return ray


def _check_address(cluster: str) -> None:
    """Check that something listens at the address; Ray itself would try for minutes."""
    host, _, port = cluster.rpartition("/")[2].rpartition(":")
    if not port.isdecimal():
        return  # left to Ray: `auto`, or not an address
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise ResourceError(
            f"the cluster {cluster} does not answer: {error}; give the address that `ray start --head` printed"
        ) from error


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
