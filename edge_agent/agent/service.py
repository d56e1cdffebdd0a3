"""The agent as a process: start from agent.yaml, run, and stop cleanly."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CameraError, ConfigError, EdgeloopError, ModelError

if TYPE_CHECKING:
    from ..config import DashboardSettings, Settings
    from ..dashboard import Dashboard
    from ..preprocessing import Pixels
    from ..store.model_store import ModelStore
    from .loaded_model import LoadedModel
    from .pipeline import Agent, Prepared

_POLL_S = 0.2
_LABELS_LAST_S = 86_400.0
"""Seconds for which a decided label is continued after a restart. After a longer time, automations may have forgotten
it, too."""


def run(config: Path, *, threads: int | None = None, delegate: str | None = None) -> None:
    """Run the agent until all cameras have ended, or until SIGTERM or Ctrl-C.

    Args:
        config: Path of agent.yaml.
        threads: Number of inference threads; overrides agent.yaml.
        delegate: Shared library of a delegate; overrides agent.yaml.

    Raises:
        EdgeloopError: The settings, the bundle or the broker cannot be used, or a camera failed.
    """
    import msgspec

    from ..config import load_settings
    from . import logs

    stop_requests = _stop_requests()
    settings = load_settings(config)
    settings = msgspec.structs.replace(
        settings, threads=threads or settings.threads, delegate=delegate or settings.delegate
    )
    logs.configure(settings.log)
    with _locked(Path(settings.state)):
        _run(settings, stop_requests)


def _run(settings: Settings, stop_requests: list[int]) -> None:
    from ..cameras.sources import is_live, open_camera, shown_source
    from ..captures.recorder import Recorder
    from ..mqtt import MqttPublisher
    from ..publishers import FanOut, Publisher
    from ..store.model_store import ModelStore
    from . import systemd
    from .command_handlers import CommandHandlers
    from .pipeline import Agent, Source
    from .supervisor import Supervisor, first_model

    state = Path(settings.state)
    store = ModelStore(state) if settings.bundle is None else None
    model, running = (_named_model(settings), None) if store is None else first_model(settings, store)
    cameras = {
        name: Source(partial(open_camera, camera), is_live(camera), shown_source(camera), camera)
        for name, camera in settings.cameras.items()
    }
    with ExitStack() as stack:
        if store is not None:
            stack.enter_context(_exit_recorded(store))
        broker = MqttPublisher(
            settings.mqtt, settings.device, state / "spool.sqlite", published=state / "published.json"
        )
        publishers: list[Publisher] = [broker]
        recorder = None
        if settings.record is not None:
            recorder = stack.enter_context(Recorder(state / "captures", settings.record, settings.device))
        agent = Agent(settings.device, model, cameras, FanOut(publishers), recorder=recorder)
        if settings.dashboard is not None:
            publishers.append(stack.enter_context(_dashboard(settings, settings.dashboard, agent)))
        control = CommandHandlers(agent, broker, settings, store)
        if settings.mqtt.commands:
            broker.serve(control.handlers)
        stack.enter_context(broker)
        agent.continue_from(broker.last_labels(_LABELS_LAST_S))
        stack.enter_context(agent)
        control.publish_tunables()
        supervisor = Supervisor(agent, broker, settings, control, recorder=recorder, store=store, running=running)
        systemd.notify("READY=1")
        while not stop_requests and not agent.wait(_POLL_S):
            supervisor.step()
        supervisor.save_score_counts()
        systemd.notify("STOPPING=1")
        control.stopping.set()
        reason = f"stopped by {signal.Signals(stop_requests[0]).name}" if stop_requests else "all cameras have ended"
        counts = "; ".join(
            f"{name}: {c.classified} of {c.captured} frames classified" for name, c in agent.counts.items()
        )
        logging.getLogger(__name__).info("%s (%s)", reason, counts)
    if agent.failures:
        raise CameraError("; ".join(f"{name}: {error}" for name, error in agent.failures.items()))


@contextmanager
def _locked(state: Path) -> Iterator[None]:
    """Lock the state directory. The lock ends with the process, however that ends.

    Raises:
        ConfigError: Another agent uses the directory.
    """
    import fcntl

    with ExitStack() as stack:
        try:
            state.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(state / "agent.lock", "a+", encoding="utf-8"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ConfigError(
                f"{state}: another agent (process {lock.read(20).strip()}) uses this state directory; give each agent "
                "its own `state` and `device` in agent.yaml"
            ) from None
        except OSError:
            # The agent also works without a disk that it can write to; another agent cannot write there, either.
            pass
        else:
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
        yield


@contextmanager
def _exit_recorded(store: ModelStore) -> Iterator[None]:
    """Record a clean exit, so that it does not count as a failed start of a model on probation.

    Exits caused by the broker are clean in this sense; errors of the model are not.
    """
    try:
        yield
    except ModelError:
        raise
    except EdgeloopError:
        store.ended()
        raise
    store.ended()


def _stop_requests() -> list[int]:
    """Install handlers for SIGTERM and Ctrl-C, and return the list to which they append the signal number."""
    requests: list[int] = []

    def handle(number: int, _frame: object) -> None:
        # Nothing else here: code that takes a lock could deadlock with the code it interrupts.
        requests.append(number)
        signal.signal(number, signal.SIG_DFL)  # A second signal ends the process at once.

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)
    return requests


def _named_model(settings: Settings) -> LoadedModel:
    """Load the model that agent.yaml names.

    Raises:
        EdgeloopError: The model cannot be used, or its bundle has no valid signature of an allowed signer.
    """
    from ..bundle import open_bundle
    from ..bundle.signature import verify_bundle
    from .loaded_model import load_model

    bundle = Path(str(settings.bundle))
    if settings.allowed_signers is not None:
        verify_bundle(open_bundle(bundle), Path(settings.allowed_signers))
    return load_model(bundle, settings)


def _dashboard(settings: Settings, address: DashboardSettings, agent: Agent) -> Dashboard:
    """The dashboard of an agent."""
    from ..dashboard import Dashboard

    shown: dict[str, tuple[Prepared, Pixels]] = {}

    def prepared(camera: str) -> Pixels | None:
        last = agent.prepared.get(camera)
        if last is None:
            return None
        if camera not in shown or shown[camera][0] is not last:
            # One array per frame: the dashboard recognises an already encoded image by its identity.
            bgr = last.levels[..., ::-1] if last.model.classifier.spec.channels == "rgb" else last.levels
            shown[camera] = last, bgr
        return shown[camera][1]

    return Dashboard(
        address,
        settings.device,
        frame=agent.newest.get,
        prepared=prepared,
        region=lambda camera: settings.cameras[camera].region,
        counts=agent.counts.get,
    )
