"""What the agent's main thread does beside it: probation, other models, the watchdog."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from edge_agent.agent import supervisor, systemd
from edge_agent.agent.command_handlers import CommandHandlers
from edge_agent.agent.loaded_model import load_model
from edge_agent.agent.pipeline import Agent, Source
from edge_agent.agent.supervisor import Supervisor, first_model
from edge_agent.cameras import ListCamera
from edge_agent.config import CameraSettings, MqttSettings, Settings
from edge_agent.errors import CommandError, ModelError
from edge_agent.messages import Tunables
from edge_agent.mqtt import MqttPublisher
from edge_agent.mqtt.commands import Set
from edge_agent.preprocessing import Pixels
from edge_agent.publishers import RecordingPublisher
from edge_agent.store.canary import CanaryLimits
from edge_agent.store.model_store import Installed, ModelStore

from ...conftest import wait_until
from .test_command_handlers import models

__all__ = ["models"]


class Kept:
    """A running agent with its store and its upkeep; the second model is on probation."""

    def __init__(
        self, agent: Agent, store: ModelStore, steps: Supervisor, control: CommandHandlers, heard: RecordingPublisher
    ) -> None:
        self.agent = agent
        self.store = store
        self.control = control
        self._steps = steps
        self._heard = heard

    @property
    def current(self) -> Installed:
        found = self.store.current()
        assert found is not None
        return found

    @property
    def told(self) -> list[Tunables]:
        return [message for _, message in self._heard.messages if isinstance(message, Tunables)]

    def until(self, condition: Callable[[], bool], what: str) -> None:
        def stepped() -> bool:
            self._steps.step()
            return condition()

        wait_until(stepped, 30, what)


@contextmanager
def kept(folder: Path, models: dict[str, Path], numbers: str = "12", proved_ms: float | None = None) -> Iterator[Kept]:
    store = ModelStore(folder / "state")
    for number in numbers:
        store.install(models[number], signers=None, limits=CanaryLimits(threads=1))
        if number != numbers[-1]:
            store.good()
    settings = Settings(
        device="pi", cameras={"door": CameraSettings(0)}, state=str(folder / "state"), threads=1, health_every_s=1
    )
    images = itertools.repeat(np.full((64, 64, 3), 90, np.uint8))
    heard = RecordingPublisher()
    broker = MqttPublisher(MqttSettings(), "pi", None)
    model, running = first_model(settings, store)
    if proved_ms is not None:
        assert running.canary is not None
        running = replace(running, canary=replace(running.canary, p50_ms=proved_ms))
    with Agent("pi", model, {"door": Source(lambda: ListCamera(images, interval_s=0.002))}, heard) as agent:
        control = CommandHandlers(agent, broker, settings, store)
        steps = Supervisor(agent, broker, settings, control, recorder=None, store=store, running=running)
        yield Kept(agent, store, steps, control, heard)


def fails(*_: object) -> None:
    raise ModelError("the accelerator is gone")


def test_a_model_that_works_is_good_after_its_frames(
    tmp_path: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "GOOD_AFTER", 40)
    with kept(tmp_path, models) as device:
        assert device.current.status == "probation"
        device.until(lambda: device.current.status == "good", "the end of the probation")
        assert device.agent.inference_ms.count >= 40
        assert device.current.version == "2"


def test_a_model_that_is_too_slow_here_is_rolled_back(
    tmp_path: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "GOOD_AFTER", 20)
    with kept(tmp_path, models, proved_ms=1e-6) as device:
        device.until(lambda: device.agent.model.bundle.manifest.version == "1", "the model before")
        assert device.current.version == "1"
        assert "too slow" in str(device.store.status().failures[0].reason)
        before = device.agent.counts["door"].classified
        device.until(lambda: device.agent.counts["door"].classified > before + 20, "it classifies on")


def test_a_model_whose_inference_fails_is_rolled_back_and_what_can_be_set_is_told_anew(
    tmp_path: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with kept(tmp_path, models) as device:
        device.until(lambda: device.agent.counts["door"].classified > 5, "frames")
        monkeypatch.setattr(device.agent.model.classifier, "infer", fails)
        device.until(lambda: device.agent.model.bundle.manifest.version == "1", "the model before")
        assert "the accelerator is gone" in str(device.store.status().failures[0].reason)
        assert len(device.told) == 1
        before = device.agent.counts["door"].classified
        device.until(lambda: device.agent.counts["door"].classified > before + 20, "it classifies on")


def test_without_a_model_to_go_back_to_a_failing_one_ends_the_agent(
    tmp_path: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with kept(tmp_path, models, "1") as device:
        monkeypatch.setattr(device.agent.model.classifier, "infer", fails)
        with pytest.raises(ModelError, match=r"accelerator is gone.*no other model to roll back to"):
            device.until(lambda: False, "the end")


def test_a_failing_model_that_agent_yaml_names_ends_the_agent(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(device="pi", cameras={"door": CameraSettings(0)}, state=str(tmp_path), bundle=str(models["1"]))
    images = itertools.repeat(np.full((64, 64, 3), 90, np.uint8))
    model, broker = load_model(models["1"], settings), MqttPublisher(MqttSettings(), "pi", None)
    camera = Source(lambda: ListCamera(images, interval_s=0.002))
    with Agent("pi", model, {"door": camera}, RecordingPublisher()) as agent:
        control = CommandHandlers(agent, broker, settings, None)
        steps = Supervisor(agent, broker, settings, control, recorder=None, store=None, running=None)
        monkeypatch.setattr(model.classifier, "infer", fails)
        wait_until(lambda: agent.failing is not None, 20, "failures")
        with pytest.raises(ModelError, match="inference keeps failing: the accelerator is gone"):
            steps.step()


def test_what_was_set_stays_with_the_next_setting_and_the_next_model(tmp_path: Path, models: dict[str, Path]) -> None:
    with kept(tmp_path, models) as device:
        device.control.set(Set(enter=0.93))
        with pytest.raises(CommandError, match=r"leave \(0.95\) must not be above enter \(0.93\)"):
            device.control.set(Set(leave=0.95))
        device.control.set(Set(leave=0.11))
        assert (device.told[-1].enter, device.told[-1].leave) == (0.93, 0.11)
        device.store.rollback(reason="asked to")
        device.until(lambda: device.agent.model.bundle.manifest.version == "1", "the model before")
        assert (device.told[-1].enter, device.told[-1].leave) == (0.93, 0.11)
        assert len(device.told) == 3


def test_the_watchdog_is_fed_while_frames_are_worked_on_and_not_by_a_timer(
    tmp_path: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[float] = []
    monkeypatch.setattr(systemd, "notify", lambda _: fed.append(time.monotonic()))
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    monkeypatch.setattr(supervisor, "_STUCK_S", 1.0)
    stuck = time.monotonic() + 3600
    with kept(tmp_path, models) as device:
        device.until(lambda: len(fed) >= 3, "food")
        infer = device.agent.model.classifier.infer

        def hangs(levels: Pixels) -> object:
            while time.monotonic() < stuck:
                time.sleep(0.05)
            return infer(levels)

        monkeypatch.setattr(device.agent.model.classifier, "infer", hangs)
        started = time.monotonic()
        device.until(lambda: time.monotonic() - started > 3, "three seconds")
        assert fed[-1] - started < 2
        stuck = 0.0
        count = len(fed)
        device.until(lambda: len(fed) > count, "food again")
