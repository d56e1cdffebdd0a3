from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

import edge_agent
from edge_agent.agent import Agent, rules_of
from edge_agent.bundle import open_bundle
from edge_agent.cameras import Camera, Frame, ListCamera
from edge_agent.config import DecisionSettings
from edge_agent.decision import Rules
from edge_agent.errors import CameraError
from edge_agent.manifest import Thresholds
from edge_agent.mqtt import RecordingPublisher
from edge_agent.mqtt.messages import Info, Observation, timestamp
from edge_agent.preprocess import Pixels

AT_ONCE = Rules(enter=0.6, leave=0.4, min_time_s=0, smoothing_s=0)


@pytest.fixture
def pictures(areas: dict[str, dict[str, Pixels]]) -> dict[str, Pixels]:
    return {label: areas[label]["video"] for label in ("brick", "stars")}


def run_agent(bundle_file: Path, cameras: dict[str, Camera], **options: Any) -> tuple[Agent, RecordingPublisher]:
    publisher = RecordingPublisher()
    with (
        edge_agent.open(bundle_file, threads=1) as classifier,
        Agent("pi", open_bundle(bundle_file), classifier, cameras, publisher, AT_ONCE, **options) as agent,
    ):
        assert agent.wait(60)
    return agent, publisher


def observations(publisher: RecordingPublisher, kind: str) -> list[Observation]:
    return [message for name, message in publisher.messages if name == kind and isinstance(message, Observation)]


def test_labels_and_events_are_published_when_they_change_and_only_then(
    bundle_file: Path, pictures: dict[str, Pixels]
) -> None:
    shown = [pictures["brick"]] * 5 + [pictures["stars"]] * 5
    agent, publisher = run_agent(bundle_file, {"door": ListCamera(shown, interval_s=0.1)})
    assert [o.label for o in observations(publisher, "label")] == ["brick", "stars"]
    assert observations(publisher, "label") == observations(publisher, "event")
    assert observations(publisher, "result") == []
    assert agent.counts["door"].captured == 10
    first = observations(publisher, "label")[0]
    assert (first.v, first.device, first.camera, first.seq) == (1, "pi", "door", 0)
    assert first.model.name == "ground"
    assert first.model.digest == open_bundle(bundle_file).digest
    assert first.top[0].label == "brick"
    assert first.timing_ms.capture_to_publish >= first.timing_ms.inference > 0


def test_every_result_is_published_on_request(bundle_file: Path, pictures: dict[str, Pixels]) -> None:
    camera = ListCamera([pictures["brick"]] * 4, interval_s=0.4)
    _, publisher = run_agent(bundle_file, {"door": camera}, results=True)
    assert [o.seq for o in observations(publisher, "result")] == [0, 1, 2, 3]


def test_info_comes_first_and_names_model_and_cameras(bundle_file: Path, pictures: dict[str, Pixels]) -> None:
    camera = ListCamera([pictures["brick"]])
    _, publisher = run_agent(bundle_file, {"door": camera}, sources={"door": "rtsp://***@host/x"})
    kind, info = publisher.messages[0]
    assert kind == "info"
    assert isinstance(info, Info)
    assert info.cameras["door"].source == "rtsp://***@host/x"
    assert info.labels == ("brick", "grass", "stars")
    assert info.recorder is False


def test_a_camera_faster_than_inference_loses_old_frames_and_never_the_newest(
    bundle_file: Path, pictures: dict[str, Pixels]
) -> None:
    camera = ListCamera([pictures["brick"]] * 400 + [pictures["stars"]])
    agent, publisher = run_agent(bundle_file, {"door": camera}, results=True)
    results = observations(publisher, "result")
    count = agent.counts["door"]
    assert count.captured == 401
    assert count.classified == len(results) < 401
    assert count.classified + count.replaced == 401
    assert results[-1].seq == 400
    assert results[-1].label == "stars"
    assert [o.seq for o in results] == sorted({o.seq for o in results})


def test_cameras_are_decided_apart(bundle_file: Path, pictures: dict[str, Pixels]) -> None:
    cameras: dict[str, Camera] = {name: ListCamera([pictures[name]] * 5, interval_s=0.1) for name in ("brick", "stars")}
    agent, publisher = run_agent(bundle_file, cameras)
    assert {(o.camera, o.label) for o in observations(publisher, "label")} == {("brick", "brick"), ("stars", "stars")}
    assert all(count.classified for count in agent.counts.values())


class Failing:
    """A camera that gives one picture and breaks."""

    def __init__(self, picture: Pixels, error: Exception) -> None:
        self.picture, self.error = picture, error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def __iter__(self) -> Iterator[Frame]:
        yield Frame(self.picture, 0)
        time.sleep(0.2)
        raise self.error


@pytest.mark.parametrize("error", [CameraError("unplugged"), RuntimeError("a bug")])
def test_one_camera_that_fails_does_not_stop_the_others(
    bundle_file: Path, pictures: dict[str, Pixels], error: Exception
) -> None:
    cameras: dict[str, Camera] = {
        "bad": Failing(pictures["brick"], error),
        "good": ListCamera([pictures["stars"]] * 6, interval_s=0.4),
    }
    agent, publisher = run_agent(bundle_file, cameras)
    assert agent.failures == {"bad": error}
    assert agent.counts["good"].classified == 6
    assert [o.label for o in observations(publisher, "label") if o.camera == "good"] == ["stars"]


def test_leaving_the_block_ends_an_endless_camera(bundle_file: Path, pictures: dict[str, Pixels]) -> None:
    def forever() -> Iterator[Pixels]:
        while True:
            yield pictures["brick"]

    with edge_agent.open(bundle_file, threads=1) as classifier:
        camera = ListCamera(forever(), interval_s=0.01)
        publisher = RecordingPublisher()
        with Agent("pi", open_bundle(bundle_file), classifier, {"door": camera}, publisher, AT_ONCE) as agent:
            assert not agent.wait(0.5)
        assert not any(thread.is_alive() for thread in agent._threads)


def test_the_devices_thresholds_come_before_the_bundles() -> None:
    bundle = Thresholds(enter=0.7, leave=0.5)
    assert rules_of(bundle, DecisionSettings()) == Rules(0.7, 0.5, 0.3, 0.5)
    assert rules_of(bundle, DecisionSettings(enter=0.9, leave=0.2)).enter == 0.9
    assert rules_of(bundle, DecisionSettings(enter=0.3)).leave == 0.3  # leave never above enter


def test_times_are_utc_with_milliseconds() -> None:
    assert timestamp(1_769_860_800_123_999_999) == "2026-01-31T12:00:00.123Z"
    assert timestamp(0) == "1970-01-01T00:00:00.000Z"
