"""What has to be done beside the frames: switch to another model, judge a new one, tell how the device is."""

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

NOTE_S = 900.0
"""Between two notes of what the models saw: a small file, four times an hour, is no wear for a card."""
GOOD_AFTER = 500
"""Frames a new model must classify without trouble before it counts as good: half a minute at 15 a second."""
TOO_SLOW = 3.0
"""Times the median of its proof: more than heat and another process take from it."""
_STUCK_S = 30.0
"""Without a step of the loop for so long, longer than any inference takes, the agent counts as stuck."""


def first_model(settings: Settings, store: ModelStore) -> tuple[LoadedModel, Installed]:
    """The model the store says to run. One that cannot even be loaded is rolled back.

    Raises:
        EdgeloopError: there is none that can be used.
    """
    installed = store.starting()
    while True:
        try:
            return load_model(Path(installed.path), settings), installed
        except EdgeloopError as error:
            back = store.failed(f"cannot be loaded: {error}", installed.digest)
            if back.digest == installed.digest:
                raise
            installed = back


class Supervisor:
    """Work of the main thread while an agent runs; `step` is called a few times a second.

    Args:
        agent: that runs.
        broker: whose refusals end the agent.
        settings: agent.yaml.
        control: what the commands do.
        recorder: whose state is told.
        store: whose current model is to run; None where agent.yaml names a bundle.
        running: what the store gave for the start.
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
        self._noted: dict[tuple[str, str], ScoreCounts] = {}
        self._noted_s = time.monotonic()
        self._reporter = HealthReporter(agent, disk=Path(settings.state))
        self._told_s = time.monotonic()
        watchdog_s = systemd.watchdog_s()
        self._watchdog_every_s = 1.0 if watchdog_s is None else min(1.0, watchdog_s / 3)
        self._fed_s = 0.0

    def step(self) -> None:
        """Do what is due.

        Raises:
            BrokerError: the broker refuses us for good.
            ModelError: the model fails, and there is none to go back to.
        """
        self._broker.check()
        now = time.monotonic()
        # Only while frames are worked on: a watchdog that a timer feeds guards nothing.
        if now - self._fed_s >= self._watchdog_every_s and now - self._agent.alive_at < _STUCK_S:
            self._fed_s = now
            systemd.notify("WATCHDOG=1")
        if self._store is not None and self._running is not None:
            self._follow(self._store)
            self._judge(self._store, self._running)
        elif self._agent.failing is not None:
            raise ModelError(f"inference fails again and again: {self._agent.failing}")
        if now - self._told_s >= self._settings.health_every_s:
            self._told_s = now
            self.tell_health()
        if now - self._noted_s >= NOTE_S:
            self._noted_s = now
            self.note_seen()

    def tell_health(self) -> None:
        """Publish how the device is."""
        kept = None if self._recorder is None else self._recorder.health()
        self._agent.publisher.health(self._reporter.report(spool=self._broker.spool_health(), recorder=kept))

    def note_seen(self) -> None:
        """Add what the models thought of their frames since the last time to the day's counts, on the disk."""
        for key, count in list(self._agent.seen.items()):
            now = count.now()
            self._days.add(*key, since(now, self._noted.get(key, ScoreCounts())))
            self._noted[key] = now
        try:
            self._days.save()
        except OSError as error:
            log.warning("what the model saw is not noted: %s", error)

    def _follow(self, store: ModelStore) -> None:
        """Run what has become current: installed, activated or rolled back, over MQTT or by a command line."""
        link = store.current_link()
        if link == self._link or link is None:
            return
        self._link = link
        try:
            self._run(store.starting())
        except EdgeloopError as error:
            log.warning("%s; what runs goes on", error)

    def _judge(self, store: ModelStore, running: Installed) -> None:
        """End the probation of a model: good, too slow, or failing."""
        failing, inference = self._agent.failing, self._agent.inference_ms
        if failing is not None:
            self._give_up(store, running, f"inference fails: {failing}")
        elif running.status == "probation" and inference.count >= GOOD_AFTER:
            p50, proved = inference.taken().p50, running.canary_p50_ms
            if proved is not None and p50 > TOO_SLOW * proved:
                self._give_up(store, running, f"too slow: {p50:.1f} ms a frame, {proved:.1f} when it was installed")
                return
            try:
                store.good(running.digest)
            except StoreError as error:
                log.warning("%s", error)
            log.info("%s has proved itself over %d frames", running, GOOD_AFTER)
            self._running = store.current() or running

    def _give_up(self, store: ModelStore, running: Installed, reason: str) -> None:
        back = store.failed(reason, running.digest)
        if back.digest == running.digest:
            if self._agent.failing is not None:
                raise ModelError(f"{reason}; and there is no model to go back to")
            self._running = _judged(running)
            return
        self._link = store.current_link()
        self._run(back)

    def _run(self, installed: Installed) -> None:
        """Load a model beside the one that runs, and switch.

        Raises:
            EdgeloopError: it cannot be loaded, and nothing else can.
        """
        store = self._store
        while store is not None:
            try:
                settings = self._control.settings
                model = load_model(Path(installed.path), settings)
            except EdgeloopError as error:
                back = store.failed(f"cannot be loaded: {error}", installed.digest)
                if back.digest == installed.digest:
                    raise
                installed, self._link = back, store.current_link()
                continue
            if installed.digest != self._agent.model.bundle.digest:
                self._agent.switch(model)
                log.info("runs %s", installed)
                self._control.tell()
            else:
                model.classifier.close()
            self._running = installed
            return


def _judged(installed: Installed) -> Installed:
    """Not judged again: there is nothing to go back to."""
    return msgspec.structs.replace(installed, status="failed")
