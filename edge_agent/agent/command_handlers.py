"""What the commands over MQTT do to a running agent."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..config import Settings
from ..errors import CommandError
from ..messages import VERSION, Tunables
from ..mqtt import MqttPublisher
from ..mqtt.commands import Activate, Bench, Handlers, Install, Rollback, Set, Snapshot
from ..store.canary import CanaryLimits
from ..store.download import fetch
from ..store.model_store import ModelStore
from .loaded_model import rules_of
from .pipeline import Agent


class CommandHandlers:
    """Does commands, each at the caller's pace; for the commands' thread alone.

    A new model takes the old one's place through the store: who runs the agent sees that `current` has changed.

    Args:
        agent: that runs.
        broker: where answers and images go.
        settings: agent.yaml.
        store: of this device's models; None where agent.yaml names a bundle.
    """

    def __init__(self, agent: Agent, broker: MqttPublisher, settings: Settings, store: ModelStore | None) -> None:
        self.stopping = threading.Event()
        """Set when the agent ends: downloads stop."""
        self._agent = agent
        self._broker = broker
        self._settings = settings
        self._store = store
        self._decision = settings.decision

    @property
    def handlers(self) -> Handlers:
        """What does which verb."""
        return {
            "snapshot": self.snapshot,
            "set": self.set,
            "install": self.install,
            "activate": self.activate,
            "rollback": self.rollback,
            "bench": self.bench,
        }

    @property
    def settings(self) -> Settings:
        """agent.yaml, with what was `set` since."""
        return msgspec.structs.replace(self._settings, decision=self._decision)

    def tell(self) -> None:
        """Publish what can be set, and its values now."""
        rules = self._agent.model.rules
        self._agent.publisher.tunables(
            Tunables(
                v=VERSION,
                device=self._agent.device,
                enter=rules.enter,
                leave=rules.leave,
                min_time_s=rules.min_time_s,
                smoothing_s=rules.smoothing_s,
                results=self._broker.wants_results,
            )
        )

    def snapshot(self, command: Snapshot) -> dict[str, Any]:
        """Publish the newest image of a camera, or of each."""
        agent = self._agent
        if command.camera is not None and command.camera not in agent.cameras:
            raise CommandError(f"no camera {command.camera}; there are {', '.join(agent.cameras)}")
        names = list(agent.cameras) if command.camera is None else [command.camera]
        seen = {name: agent.newest[name] for name in names if name in agent.newest}
        if not seen:
            raise CommandError("no camera has delivered an image yet")
        for name, frame in seen.items():
            agent.publisher.snapshot(name, frame.jpeg())
        return {"cameras": sorted(seen)}

    def set(self, command: Set) -> dict[str, Any]:
        """Change when labels are decided, or whether results are published, until the agent ends."""
        changes = {
            key: value
            for key, value in msgspec.structs.asdict(command).items()
            if key not in ("id", "results") and value is not None
        }
        decision = msgspec.structs.replace(self._decision, **changes)
        if command.enter is not None and command.leave is not None and command.leave > command.enter:
            raise CommandError(f"leave ({command.leave}) must not be above enter ({command.enter})")
        if command.leave is not None and command.enter is None and command.leave > self._agent.model.rules.enter:
            raise CommandError(f"leave ({command.leave}) must not be above enter ({self._agent.model.rules.enter})")
        model = self._agent.model
        rules = rules_of(model.bundle.manifest.thresholds, decision, model.bundle.labels)
        self._decision = decision
        self._agent.rule(rules)
        if command.results is not None:
            self._broker.wants_results = command.results
        self.tell()
        return {**changes, **({} if command.results is None else {"results": command.results})}

    def install(self, command: Install) -> dict[str, Any]:
        """Fetch a bundle, check it, prove it and, unless told otherwise, run it."""
        store, settings = self._own_store(), self._settings
        signers = None if settings.allowed_signers is None else Path(settings.allowed_signers)
        if settings.install.unsigned:
            signers = None
        elif signers is None:
            raise CommandError(
                "this device takes no models over MQTT: agent.yaml names no allowed_signers (install.unsigned: true "
                "takes what nobody signed)"
            )
        file = store.incoming / f"{command.sha256}.edgeloop"
        try:
            fetch(command.url, command.sha256, file, stop=self.stopping)
            limits = CanaryLimits(threads=settings.threads, delegate=settings.delegate)
            installed = store.install(file, signers=signers, activate=command.activate, limits=limits)
        finally:
            file.unlink(missing_ok=True)
        return _told(installed)

    def activate(self, command: Activate) -> dict[str, Any]:
        """Run an installed model."""
        return _told(self._own_store().activate(command.model))

    def rollback(self, _command: Rollback) -> dict[str, Any]:
        """Run the model before this one."""
        return _told(self._own_store().rollback(reason="rolled back over MQTT"))

    def bench(self, command: Bench) -> dict[str, Any]:
        """Time the model once more beside the running agent, on a grey image: milliseconds of invoke."""
        from ..inference.classifier import Classifier

        model = self._agent.model
        with Classifier.from_bundle(
            model.bundle, threads=self._settings.threads, delegate=model.classifier.delegate
        ) as classifier:
            levels = np.full(classifier.spec.shape, 127, np.uint8)
            times = [classifier.infer(levels)[1] for _ in range(command.runs)]
        p50, p90, p99 = (round(float(value), 3) for value in np.percentile(times, (50, 90, 99)))
        return {"runs": command.runs, "p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "threads": classifier.threads}

    def _own_store(self) -> ModelStore:
        if self._store is None:
            raise CommandError("agent.yaml names a bundle; without that line the agent runs what is installed")
        return self._store


def _told(installed: Any) -> dict[str, Any]:
    return {
        "name": installed.name,
        "version": installed.version,
        "digest": installed.digest,
        "status": installed.status,
    }
