"""Supervision of a running agent: switch models, end a model's probation, publish health, feed the watchdog."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import msgspec

from ..captures.recorder import Recorder
from ..config import Settings
from ..errors import EdgeloopError, ModelError, StoreError
from ..monitoring.score_counts import DailyScoreCounts, ScoreCounts, since
from ..mqtt import MqttPublisher
from ..store.model_store import Installed, ModelStore
from . import systemd
from .command_handlers import CommandHandlers
from .health import HealthReporter
from .loaded_model import LoadedModel, load_model
from .pipeline import Agent

log = logging.getLogger(__name__)

SAVE_INTERVAL_S = 900.0
"""Seconds between writes of the score counts. Four small writes an hour do not wear out an SD card."""
GOOD_AFTER = 500
"""Frames that a new model must classify without errors to pass its probation: half a minute at 15 frames/s."""
TOO_SLOW = 3.0
"""A model is too slow if its median inference time is more than this many times the median in its canary test. Heat
and other processes slow a model down by less than this factor."""
_STUCK_S = 30.0
"""The agent counts as stuck after this many seconds without progress; no inference takes that long."""


def first_model(settings: Settings, store: ModelStore) -> tuple[LoadedModel, Installed]:
    """Load the model that the store selects. A model that cannot be loaded is rolled back.

    Raises:
        EdgeloopError: No installed model can be used.
    """
    installed = store.starting()
    while True:
        try:
            return load_model(Path(installed.path), settings), installed
        except EdgeloopError as error:
            previous = store.failed(f"cannot be loaded: {error}", installed.digest)
            if previous.digest == installed.digest:
                raise
            installed = previous


class Supervisor:
    """Periodic work of the main thread while the agent runs; call `step` a few times per second.

    Args:
        agent: The running agent.
        broker: MQTT client. If the broker refuses the connection for good, the agent stops.
        settings: Settings from agent.yaml.
        control: Handlers of the MQTT commands.
        recorder: Recorder, whose state is part of the health messages.
        store: Model store whose current model the agent runs; None if agent.yaml names a bundle.
        running: The model that the store selected at startup.
    """

    def __init__(
        self,
        agent: Agent,
        broker: MqttPublisher,
        settings: Settings,
        control: CommandHandlers,
        *,
        recorder: Recorder | None,
        store: ModelStore | None,
        running: Installed | None,
    ) -> None:
        self._agent = agent
        self._broker = broker
        self._settings = settings
        self._control = control
        self._recorder = recorder
        self._store = store
        self._running = running
        self._link = None if store is None else store.current_link()
        self._days = DailyScoreCounts(Path(settings.state))
        self._saved: dict[tuple[str, str], ScoreCounts] = {}
        self._saved_s = time.monotonic()
        self._reporter = HealthReporter(agent, disk=Path(settings.state))
        self._health_sent_s = time.monotonic()
        watchdog_s = systemd.watchdog_s()
        self._watchdog_every_s = 1.0 if watchdog_s is None else min(1.0, watchdog_s / 3)
        self._fed_s = 0.0

    def step(self) -> None:
        """Do the work that is due.

        Raises:
            BrokerError: The broker refuses the connection for good.
            ModelError: The model fails, and there is no model to go back to.
        """
        self._broker.check()
        now = time.monotonic()
        # Only while the pipeline makes progress; a watchdog that is fed unconditionally detects nothing.
        if now - self._fed_s >= self._watchdog_every_s and now - self._agent.alive_at < _STUCK_S:
            self._fed_s = now
            systemd.notify("WATCHDOG=1")
        if self._store is not None and self._running is not None:
            self._switch_if_changed(self._store)
            self._end_probation(self._store, self._running)
        elif self._agent.failing is not None:
            raise ModelError(f"inference keeps failing: {self._agent.failing}")
        if now - self._health_sent_s >= self._settings.health_every_s:
            self._health_sent_s = now
            self.publish_health()
        if now - self._saved_s >= SAVE_INTERVAL_S:
            self._saved_s = now
            self.save_score_counts()
            if self._store is not None:
                self._store.clean_incoming()

    def publish_health(self) -> None:
        """Publish a health message."""
        recorder = None if self._recorder is None else self._recorder.health()
        self._agent.publisher.health(self._reporter.report(spool=self._broker.spool_health(), recorder=recorder))

    def save_score_counts(self) -> None:
        """Add the scores counted since the last call of this method to today's counts, and write all counts to disk."""
        for key, counter in list(self._agent.score_counters.items()):
            now = counter.now()
            self._days.add(*key, since(now, self._saved.get(key, ScoreCounts())))
            self._saved[key] = now
        try:
            self._days.save()
        except OSError as error:
            log.warning("cannot save the score counts: %s", error)

    def _switch_if_changed(self, store: ModelStore) -> None:
        """Switch to the store's current model if a command, over MQTT or on the command line, has changed it."""
        link = store.current_link()
        if link == self._link or link is None:
            return
        self._link = link
        try:
            self._run(store.starting())
        except EdgeloopError as error:
            log.warning("%s; the running model is kept", error)

    def _end_probation(self, store: ModelStore, running: Installed) -> None:
        """Confirm a model that has passed its probation; roll back a model that fails or is too slow."""
        failing, inference = self._agent.failing, self._agent.inference_ms
        if failing is not None:
            self._roll_back(store, running, f"inference fails: {failing}")
        elif running.status == "probation" and inference.count >= GOOD_AFTER:
            p50, canary_p50 = inference.take().p50, running.canary_p50_ms
            if canary_p50 is not None and p50 > TOO_SLOW * canary_p50:
                self._roll_back(
                    store, running, f"too slow: {p50:.1f} ms per frame, {canary_p50:.1f} ms in its canary test"
                )
                return
            try:
                store.good(running.digest)
            except StoreError as error:
                log.warning("%s", error)
            log.info("%s has passed its probation of %d frames", running, GOOD_AFTER)
            self._running = store.current() or running

    def _roll_back(self, store: ModelStore, running: Installed, reason: str) -> None:
        previous = store.failed(reason, running.digest)
        if previous.digest == running.digest:
            if self._agent.failing is not None:
                raise ModelError(f"{reason}; there is no other model to roll back to")
            # Nothing to roll back to, so the probation is not checked again.
            self._running = msgspec.structs.replace(running, status="failed")
            return
        self._link = store.current_link()
        self._run(previous)

    def _run(self, installed: Installed) -> None:
        """Load a model while the current one runs, then switch to it.

        Raises:
            EdgeloopError: Neither this model nor the one to roll back to can be loaded.
        """
        store = self._store
        while store is not None:
            try:
                settings = self._control.settings
                model = load_model(Path(installed.path), settings)
            except EdgeloopError as error:
                previous = store.failed(f"cannot be loaded: {error}", installed.digest)
                if previous.digest == installed.digest:
                    raise
                installed, self._link = previous, store.current_link()
                continue
            if installed.digest != self._agent.model.bundle.digest:
                self._agent.switch(model)
                log.info("running %s", installed)
                self._control.publish_tunables()
            else:
                model.classifier.close()
            self._running = installed
            return
