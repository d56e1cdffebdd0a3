from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import pytest

from edge_agent.agent.loaded_model import LoadedModel, load_model, rules_of
from edge_agent.agent.pipeline import Agent, Source
from edge_agent.bundle import open_bundle
from edge_agent.bundle.manifest import Thresholds
from edge_agent.cameras import ArrayFrame, Camera, Frame, ListCamera
from edge_agent.cameras.frames import encoded
from edge_agent.cameras.jpeg import JpegFrame
from edge_agent.captures.folder import read_capture
from edge_agent.captures.recorder import Recorder
from edge_agent.config import CameraSettings, ClassSettings, DecisionSettings, MotionSettings, RecordSettings, Settings
from edge_agent.errors import CameraError
from edge_agent.images import read_image
from edge_agent.inference.classifier import Classifier
from edge_agent.inference.decision import Rules
from edge_agent.messages import Info, Observation, timestamp
from edge_agent.preprocessing import Pixels
from edge_agent.publishers import RecordingPublisher

from ...support.bundles import repacked

AT_ONCE = Rules(enter=0.6, leave=0.4, min_time_s=0, smoothing_s=0)


@pytest.fixture
def images(areas: dict[str, dict[str, Pixels]]) -> dict[str, Pixels]:
    return {label: areas[label]["video"] for label in ("brick", "stars")}


def model_of(bundle_file: Path, rules: Rules = AT_ONCE) -> LoadedModel:
    bundle = open_bundle(bundle_file)
    return LoadedModel(bundle, Classifier.from_bundle(bundle, threads=1), rules)


def agent_of(bundle_file: Path, cameras: dict[str, Camera], publisher: RecordingPublisher, **options: Any) -> Agent:
    def opened(camera: Camera) -> Camera:
        return camera

    sources = {name: Source(partial(opened, camera), shown=f"the {name}") for name, camera in cameras.items()}
    return Agent("pi", model_of(bundle_file), sources, publisher, **options)


def run_agent(
    bundle_file: Path, cameras: dict[str, Camera], *, results: bool = False, **options: Any
) -> tuple[Agent, RecordingPublisher]:
    publisher = RecordingPublisher(wants_results=results)
    with agent_of(bundle_file, cameras, publisher, **options) as agent:
        assert agent.wait(60)
    return agent, publisher


def observations(publisher: RecordingPublisher, kind: str) -> list[Observation]:
    return [message for name, message in publisher.messages if name == kind and isinstance(message, Observation)]


@pytest.mark.parametrize("is_set", [True, False])
def test_a_message_says_whether_the_clock_was_set(
    bundle_file: Path, images: dict[str, Pixels], monkeypatch: pytest.MonkeyPatch, *, is_set: bool
) -> None:
    monkeypatch.setattr("edge_agent.agent.pipeline.is_clock_set", lambda: is_set)
    _, publisher = run_agent(bundle_file, {"door": ListCamera([images["brick"]] * 3, interval_s=0.1)})
    assert {o.clock for o in observations(publisher, "label")} == {None if is_set else "unset"}


def test_labels_and_events_are_published_when_they_change_and_only_then(
    bundle_file: Path, images: dict[str, Pixels]
) -> None:
    shown = [images["brick"]] * 5 + [images["stars"]] * 5
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


def test_every_result_is_published_on_request(bundle_file: Path, images: dict[str, Pixels]) -> None:
    camera = ListCamera([images["brick"]] * 4, interval_s=0.4)
    _, publisher = run_agent(bundle_file, {"door": camera}, results=True)
    assert [o.seq for o in observations(publisher, "result")] == [0, 1, 2, 3]


def test_info_comes_first_and_names_model_and_cameras(bundle_file: Path, images: dict[str, Pixels]) -> None:
    camera = ListCamera([images["brick"]])
    _, publisher = run_agent(bundle_file, {"door": camera})
    kind, info = publisher.messages[0]
    assert kind == "info"
    assert isinstance(info, Info)
    assert info.cameras["door"].source == "the door"
    assert info.labels == ("brick", "grass", "stars")
    assert info.recorder is False


def test_a_camera_faster_than_inference_loses_old_frames_and_never_the_newest(
    bundle_file: Path, images: dict[str, Pixels]
) -> None:
    camera = ListCamera([images["brick"]] * 400 + [images["stars"]])
    agent, publisher = run_agent(bundle_file, {"door": camera}, results=True)
    results = observations(publisher, "result")
    count = agent.counts["door"]
    assert count.captured == 401
    assert count.classified == len(results) < 401
    assert count.classified + count.replaced == 401
    assert results[-1].seq == 400
    assert results[-1].label == "stars"
    assert [o.seq for o in results] == sorted({o.seq for o in results})


def test_cameras_are_decided_apart(bundle_file: Path, images: dict[str, Pixels]) -> None:
    cameras: dict[str, Camera] = {name: ListCamera([images[name]] * 5, interval_s=0.1) for name in ("brick", "stars")}
    agent, publisher = run_agent(bundle_file, cameras)
    assert {(o.camera, o.label) for o in observations(publisher, "label")} == {("brick", "brick"), ("stars", "stars")}
    assert all(count.classified for count in agent.counts.values())


class Failing:
    """A camera that gives one image and breaks."""

    def __init__(self, image: Pixels, error: Exception) -> None:
        self.image, self.error = image, error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def __iter__(self) -> Iterator[Frame]:
        yield ArrayFrame(image=self.image, seq=0)
        time.sleep(0.2)
        raise self.error


@pytest.mark.parametrize("error", [CameraError("unplugged"), RuntimeError("a bug")])
def test_one_camera_that_fails_does_not_stop_the_others(
    bundle_file: Path, images: dict[str, Pixels], error: Exception
) -> None:
    cameras: dict[str, Camera] = {
        "bad": Failing(images["brick"], error),
        "good": ListCamera([images["stars"]] * 6, interval_s=0.4),
    }
    agent, publisher = run_agent(bundle_file, cameras)
    assert agent.failures == {"bad": error}
    assert agent.counts["good"].classified == 6
    assert [o.label for o in observations(publisher, "label") if o.camera == "good"] == ["stars"]


def test_leaving_the_block_ends_an_endless_camera(bundle_file: Path, images: dict[str, Pixels]) -> None:
    def forever() -> Iterator[Pixels]:
        while True:
            yield images["brick"]

    camera = ListCamera(forever(), interval_s=0.01)
    with agent_of(bundle_file, {"door": camera}, RecordingPublisher()) as agent:
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


def forever(image: Pixels, interval_s: float = 0.01) -> ListCamera:
    return ListCamera(repeat(image), interval_s=interval_s)


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_another_model_takes_over_between_two_frames_and_labels_go_on(
    bundle_file: Path, images: dict[str, Pixels], tmp_path: Path
) -> None:
    publisher = RecordingPublisher()
    second = repacked(bundle_file, tmp_path / "ground-9.edgeloop", version="9")
    with agent_of(bundle_file, {"door": forever(images["stars"])}, publisher) as agent:
        until(lambda: agent.counts["door"].classified > 20)
        old = agent.model.classifier
        agent.switch(model_of(second))
        count = agent.counts["door"].classified
        until(lambda: agent.counts["door"].classified > count + 20)
        assert agent.failures == {}
        assert agent.inference_ms.count <= agent.counts["door"].classified - count + 1
        with pytest.raises(TypeError):  # it was closed
            old.infer(np.zeros(old.spec.shape, np.uint8))
    results = observations(publisher, "result")
    versions = [o.model.version for o in results]
    assert sorted(versions, key=lambda version: version == "9") == versions
    assert [o.seq for o in results] == sorted({o.seq for o in results})
    assert [(o.label, o.model.version) for o in observations(publisher, "label")] == [("stars", "1.2"), ("stars", "9")]
    assert [o.label for o in observations(publisher, "event")] == ["stars"]
    assert [m.model.version for kind, m in publisher.messages if kind == "info"] == ["1.2", "9"]


def test_a_model_that_fails_again_and_again_is_told_and_can_be_replaced(
    bundle_file: Path, images: dict[str, Pixels], caplog: pytest.LogCaptureFixture
) -> None:
    with agent_of(bundle_file, {"door": forever(images["stars"])}, RecordingPublisher()) as agent:
        until(lambda: agent.counts["door"].classified > 5)
        agent.model.classifier.close()
        until(lambda: agent.failing is not None)
        assert caplog.text.count("inference failed") == 1
        count = agent.counts["door"].classified
        agent.switch(model_of(bundle_file))
        until(lambda: agent.counts["door"].classified > count + 5)
        assert agent.failing is None


def test_rules_can_be_changed_while_it_runs(bundle_file: Path, images: dict[str, Pixels]) -> None:
    publisher = RecordingPublisher()
    with agent_of(bundle_file, {"door": forever(images["stars"])}, publisher) as agent:
        until(lambda: bool(observations(publisher, "event")))
        agent.set_rules(Rules(enter=1.0, leave=1.0, min_time_s=0, smoothing_s=0))
        until(lambda: len(observations(publisher, "event")) == 2)
    assert [o.label for o in observations(publisher, "event")] == ["stars", "unknown"]


def test_only_the_region_is_looked_at(bundle_file: Path, images: dict[str, Pixels]) -> None:
    both = np.hstack([np.asarray(cv2.resize(images[label], (200, 200)), np.uint8) for label in ("brick", "stars")])
    sources = {
        side: Source(
            partial(ListCamera, [both] * 3, interval_s=0.2), settings=CameraSettings("x", region=(left, 0, right, 1))
        )
        for side, left, right in (("left", 0.0, 0.5), ("right", 0.5, 1.0))
    }
    publisher = RecordingPublisher()
    with Agent("pi", model_of(bundle_file), sources, publisher) as agent:
        assert agent.wait(60)
    assert {(o.camera, o.label) for o in observations(publisher, "label")} == {("left", "brick"), ("right", "stars")}


def test_with_the_motion_gate_a_still_scene_is_hardly_classified_and_no_change_is_missed(
    bundle_file: Path, images: dict[str, Pixels]
) -> None:
    shown = [images["brick"]] * 40 + [images["stars"]] * 40 + [images["brick"]] * 40
    settings = CameraSettings("x", motion=MotionSettings(every_s=60))
    publisher = RecordingPublisher()
    source = Source(partial(ListCamera, shown, interval_s=0.03), settings=settings)
    with Agent("pi", model_of(bundle_file), {"door": source}, publisher) as agent:
        assert agent.wait(60)
    count = agent.counts["door"]
    assert [o.label for o in observations(publisher, "event")] == ["brick", "stars", "brick"]
    assert count.classified <= 15
    assert count.classified + count.unchanged + count.replaced == 120


def test_a_damaged_frame_is_passed_over(bundle_file: Path, images: dict[str, Pixels]) -> None:
    data = encoded(images["stars"])

    class Flaky(ListCamera):
        def __iter__(self) -> Iterator[Frame]:
            for seq in range(6):
                yield JpegFrame(data=data if seq % 2 else data[: len(data) // 2], seq=seq)
                time.sleep(0.2)

    agent, publisher = run_agent(bundle_file, {"door": Flaky([])}, results=True)
    assert agent.counts["door"].damaged == 3
    assert [o.seq for o in observations(publisher, "result")] == [1, 3, 5]


def test_a_camera_whose_images_change_their_size_goes_on(bundle_file: Path, images: dict[str, Pixels]) -> None:
    shown = [cv2.resize(images["stars"], size) for size in ((64, 48), (640, 360), (17, 300), (1280, 720))]
    agent, publisher = run_agent(bundle_file, {"door": ListCamera(shown, interval_s=0.3)}, results=True)  # type: ignore[arg-type]
    assert [o.seq for o in observations(publisher, "result")] == [0, 1, 2, 3]
    assert agent.failures == {}


def test_cameras_are_told_when_they_come_and_end(bundle_file: Path, images: dict[str, Pixels]) -> None:
    agent, publisher = run_agent(bundle_file, {"door": ListCamera([images["stars"]])})
    assert [m for kind, m in publisher.messages if kind == "camera"] == [("door", "online"), ("door", "ended")]
    assert agent.counts["door"].state == "ended"


def test_uncertain_frames_are_kept_as_the_camera_took_them(
    bundle_file: Path, images: dict[str, Pixels], tmp_path: Path
) -> None:
    large = cv2.resize(images["stars"], (640, 480))
    with Recorder(tmp_path, RecordSettings(min_free_mb=0), "pi") as recorder:
        run_agent(bundle_file, {"door": ListCamera([large])}, recorder=recorder)  # type: ignore[list-item]
        until(lambda: recorder.health().kept == 1)
    [line] = tmp_path.glob("*/*.json")
    capture = read_capture(line)
    assert capture is not None
    assert (capture.reason, capture.label, capture.width, capture.height) == ("changed", "stars", 640, 480)
    assert read_image(line.with_suffix(".jpg")).shape == (480, 640, 3)


def test_a_delegate_that_cannot_be_used_is_said_and_the_cpu_does_it(
    bundle_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(device="pi", cameras={"door": CameraSettings(0)}, delegate="/nowhere/libedgetpu.so.1")
    model = load_model(bundle_file, settings)
    assert model.classifier.delegate is None
    assert "/nowhere/libedgetpu.so.1" in caplog.text
    assert "CPU" in caplog.text
    model.classifier.close()


def test_a_label_has_rules_of_its_own_and_an_unknown_one_is_named(caplog: pytest.LogCaptureFixture) -> None:
    settings = DecisionSettings(classes={"stars": ClassSettings(leave=0.8), "cat": ClassSettings(enter=0.9)})
    rules = rules_of(Thresholds(enter=0.7, leave=0.5), settings, ("brick", "stars"))
    assert set(rules.classes) == {1}
    assert (rules.classes[1].enter, rules.classes[1].leave) == (0.8, 0.8)
    assert "'cat'" in caplog.text
