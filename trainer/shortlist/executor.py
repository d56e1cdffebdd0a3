"""A pass over many items: one after the other in this process, or on Ray's workers, here or on a cluster."""

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
from rich.progress import track

from edge_agent.errors import EdgeloopError, MissingExtraError, ResourceError
from edge_agent.native_stderr import native_noise_hidden

_TASKS = 32
"""Portions of a pass for each worker: enough that all end together, few enough that handing out costs nothing."""
_ANSWER_S = 10.0
_STORE_BYTES = 512 * 2**20
"""Of shared memory for Ray on one machine; what is passed around is a hundredth of it."""


class Spread(Protocol):
    """Does a pass over items."""

    def __call__(self, work: Callable[..., Any], items: Sequence[Any], what: str, *, loads: bool = False) -> list[Any]:
        """What ``work`` gives for each item, in the items' order.

        Sums of products are computed in one thread, so that they are the same to the bit wherever it is done.

        Args:
            work: called with an item.
            items: what there is to do.
            what: for the progress bar.
            loads: ``work`` is called without anything, once in each worker, and gives what is called with the items;
                the worker has a GPU where there are any.

        Raises:
            EdgeloopError: what ``work`` raised; in another process a `ResourceError` that says the same.
            ResourceError: a process ended again and again.
        """
        ...


def here(console: Console) -> Spread:
    """All of it in this process."""

    def spread(work: Callable[..., Any], items: Sequence[Any], what: str, *, loads: bool = False) -> list[Any]:
        if loads:
            work = work()
        with _one_thread():
            return [work(item) for item in _shown(items, what, len(items), console, loads=loads)]

    return spread


@contextmanager
def on_ray(console: Console, *, workers: int | None, cluster: str | None = None) -> Iterator[Spread]:
    """On Ray Data.

    Args:
        console: for the progress.
        workers: processes; None for as many as there are cores.
        cluster: address of a cluster that runs; None for workers on this machine, which other machines cannot reach.

    Raises:
        MissingExtraError: Ray is not installed.
        ResourceError: the cluster cannot be reached, or Ray does not start here.
    """
    with ExitStack() as stack:
        ray = _start(stack, workers, cluster)
        found = ray.cluster_resources()
        cores, gpus = max(1, int(found.get("CPU", 1))), int(found.get("GPU", 0))
        # More workers than cores would wait for cores for ever.
        count = min(workers or cores, cores)
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)

        def spread(work: Callable[..., Any], items: Sequence[Any], what: str, *, loads: bool = False) -> list[Any]:
            size = min(gpus if loads and gpus else count, len(items))
            # What loads takes long with each item, and its bar is to move; else handing out each would take longest.
            portion = 1 if loads else -(-len(items) // (_TASKS * size))
            starts = range(0, len(items), portion)
            rows = ray.data.from_items(
                [{"start": start, "items": _Box(items[start : start + portion])} for start in starts],
                override_num_blocks=min(len(starts), _TASKS * size),
            )
            if loads:
                done = rows.map_batches(
                    _Loaded,
                    fn_constructor_args=(work,),
                    batch_size=1,
                    compute=ray.data.ActorPoolStrategy(size=size),
                    num_gpus=1 if gpus else 0,
                )
            else:
                done = rows.map_batches(
                    _batch, fn_args=(work,), batch_size=1, compute=ray.data.TaskPoolStrategy(size=size)
                )
            results: dict[int, list[Any]] = {}
            failure: _Failure | None = None
            try:
                # Closed here and now, so that no worker goes on when one has failed.
                with closing(iter(done.iter_rows())) as arriving:
                    for row in _shown(arriving, what, len(starts), console, loads=loads):
                        found = row["results"].content
                        if isinstance(found, _Failure):
                            failure = found
                            break
                        results[row["start"]] = found
            except Exception as error:
                raise ResourceError(f"Ray gave up: {_last_line(error)}; run the same command again") from error
            if failure is not None:
                raise ResourceError(failure.told)
            return [result for start in starts for result in results[start]]

        yield spread


def _shown(items: Iterable[Any], what: str, total: int, console: Console, *, loads: bool) -> Iterable[Any]:
    """With a bar, which stays only where it was about the long part."""
    hidden = not loads and not console.is_terminal
    return track(items, what, total=total, console=console, transient=not loads, disable=hidden)


@dataclass(frozen=True)
class _Box:
    """What Ray is to hand over as it is, and not as a column's number, text or list."""

    content: Any


@dataclass(frozen=True)
class _Failure:
    """An error in words: not every exception comes out of a pickle as it went in."""

    told: str


def _batch(batch: dict[str, Any], work: Callable[[Any], Any]) -> dict[str, Any]:
    """A batch of one portion of items, as Ray hands it to workers."""
    found: list[Any] | _Failure
    try:
        with _one_thread():
            found = [work(item) for item in batch["items"][0].content]
    except EdgeloopError as error:
        found = _Failure(str(error))
    except Exception as error:  # noqa: BLE001  whatever it is, it is told where somebody reads it
        found = _Failure(f"a worker failed: {error!r}; what was done is kept, run the same command again")
    column = np.empty(1, object)
    column[0] = _Box(found)
    return {"start": batch["start"], "results": column}


class _Loaded:
    """What Ray makes once a worker; what takes long is loaded with the first batch, where an error can be told."""

    def __init__(self, work: Callable[[], Callable[[Any], Any]]) -> None:
        # A worker has a core, and TensorFlow would begin a thread for each that the machine has.
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
        self._load = work
        self._work: Callable[[Any], Any] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return _batch(batch, self._item)

    def _item(self, item: Any) -> Any:
        if self._work is None:
            self._work = self._load()
        return self._work(item)


def _one_thread() -> Any:
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, user_api="blas")


def _start(stack: ExitStack, workers: int | None, cluster: str | None) -> Any:
    # Ray sends its makers what it is used for unless told not to.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Its C++ parts write warnings past Python, and what they report is printed here, whatever is said of logs below.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    if cluster is None:
        # Without it Ray listens on all addresses of the machine, not on loopback alone; the name is older than the use.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # Other users of this machine are not let in, either.
        os.environ["RAY_AUTH_MODE"] = "token"
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError("working on several processes", "scale", error.name) from error
    if cluster is not None:
        _check(cluster)
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


def _check(cluster: str) -> None:
    """Whether anything listens there: Ray itself tries for minutes."""
    host, _, port = cluster.rpartition("/")[2].rpartition(":")
    if not port.isdecimal():
        return  # Ray knows better: `auto`, or no address at all
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise ResourceError(
            f"the cluster {cluster} does not answer: {error}; give the address that `ray start --head` printed"
        ) from error


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
