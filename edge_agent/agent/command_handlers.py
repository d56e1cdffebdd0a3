"""Handlers of the MQTT commands of a running agent."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..bundle import open_bundle
from ..bundle.signature import verify_bundle
from ..config import Settings
from ..errors import CommandError, EdgeloopError, one_line
from ..messages import VERSION, Tunables
from ..mqtt import MqttPublisher
from ..mqtt.commands import Activate, Bench, Handlers, Install, Rollback, Set, Snapshot
from ..store.canary import CanaryLimits
from ..store.download import fetch
from ..store.model_store import ModelStore
from .loaded_model import rules_of
from .pipeline import Agent

log = logging.getLogger(__name__)


class CommandHandlers:
    """Carries out commands, one at a time, in the thread of `edge_agent.mqtt.commands.Commands`.

    A command that changes the model only updates the model store. The supervisor then notices that the store's link
    `current` has changed, and switches the agent to the new model.

    Args:
        agent: The running agent.
        broker: MQTT client that publishes replies and images.
        settings: Settings from agent.yaml.
        store: Model store of this device; None if agent.yaml names a bundle.
    """

    def __init__(self, agent: Agent, broker: MqttPublisher, settings: Settings, store: ModelStore | None) -> None:
        self.stopping = threading.Event()
        """Set when the agent stops, to cancel downloads."""
        self._agent = agent
        self._broker = broker
        self._settings = settings
        self._store = store
        self._decision = settings.decision

    @property
    def handlers(self) -> Handlers:
        """Handlers of all commands, by the verb of the command."""
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
        """Settings from agent.yaml, including later changes by the command `set`."""
        return msgspec.structs.replace(self._settings, decision=self._decision)

    def publish_tunables(self) -> None:
        """Publish the current values of the settings that `set` can change."""
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
        """Publish the newest image of one camera or of all cameras."""
        agent = self._agent
        if command.camera is not None and command.camera not in agent.cameras:
            raise CommandError(f"unknown camera {command.camera}; expected one of {', '.join(agent.cameras)}")
        names = list(agent.cameras) if command.camera is None else [command.camera]
        frames = {name: agent.newest[name] for name in names if name in agent.newest}
        if not frames:
            raise CommandError("no camera has delivered an image yet; try again later")
        images = {name: frame.jpeg() for name, frame in frames.items()}
        limit = self._broker.size_limit()
        for name, jpeg in images.items():
            if limit is not None and len(jpeg) > limit:
                raise CommandError(
                    f"the image of {name} has {len(jpeg)} bytes, but the broker accepts at most {limit}; increase the "
                    "broker's maximum packet size, or reduce the size of the camera's image"
                )
        for name, jpeg in images.items():
            agent.publisher.snapshot(name, jpeg)
        return {"cameras": sorted(frames)}

    def set(self, command: Set) -> dict[str, Any]:
        """Change the decision rules, or turn the publishing of results on or off, until the agent stops."""
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
        self._agent.set_rules(rules)
        if command.results is not None:
            self._broker.wants_results = command.results
        self.publish_tunables()
        return {**changes, **({} if command.results is None else {"results": command.results})}

    def install(self, command: Install) -> dict[str, Any]:
        """Download a bundle, verify it, run its canary test and, unless ``activate`` is false, activate it."""
        store, settings = self._own_store(), self._settings
        signers = None if settings.allowed_signers is None else Path(settings.allowed_signers)
        if settings.install.unsigned:
            signers = None
        elif signers is None:
            raise CommandError(
                "this device does not install models over MQTT: agent.yaml names no allowed_signers "
                "(install.unsigned: true accepts unsigned bundles)"
            )
        file = store.incoming / f"{command.sha256}.edgeloop"
        try:
            self._fetch(command, file, signers)
            limits = CanaryLimits(threads=settings.threads, delegate=settings.delegate)
            installed = store.install(file, signers=signers, activate=command.activate, limits=limits)
        finally:
            file.unlink(missing_ok=True)
        return _summary(installed)

    def _fetch(self, command: Install, file: Path, signers: Path | None) -> None:
        """Download a bundle and verify its signature.

        Until the signature holds, the reply says nothing of what was found: otherwise, whoever may send commands could
        explore the device's network through the agent.
        """
        try:
            fetch(command.url, command.sha256, file, stop=self.stopping, hosts=self._settings.install.hosts)
            verify_bundle(open_bundle(file), signers)
        except EdgeloopError as error:
            log.warning("install: %s", one_line(error))
            raise CommandError(
                "the bundle could not be fetched and verified; the log of the device gives the reason"
            ) from None

    def activate(self, command: Activate) -> dict[str, Any]:
        """Activate an installed model."""
        return _summary(self._own_store().activate(command.model))

    def rollback(self, _command: Rollback) -> dict[str, Any]:
        """Go back to the previous model."""
        return _summary(self._own_store().rollback(reason="rolled back over MQTT"))

    def bench(self, command: Bench) -> dict[str, Any]:
        """Load a second copy of the model and measure its inference times, in milliseconds, while the agent runs."""
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
            raise CommandError(
                "agent.yaml names a bundle, so the agent ignores installed models; remove the key bundle to use them"
            )
        return self._store


def _summary(installed: Any) -> dict[str, Any]:
    return {
        "name": installed.name,
        "version": installed.version,
        "digest": installed.digest,
        "status": installed.status,
    }
