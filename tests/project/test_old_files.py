"""Files written by the version before the modules were moved and renamed are read by this one."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

import edge_agent
from converter.run_reader import open_run
from edge_agent.captures.folder import read_capture
from edge_agent.images import decode_image
from edge_agent.monitoring.score_counts import DailyScoreCounts
from edge_agent.mqtt.spool import Spool
from edge_agent.native_stderr import native_noise_hidden
from edge_agent.store.model_store import ModelStore
from trainer.active_learning.annotations import Annotation, Annotations
from trainer.active_learning.captured_frames import find_frames
from trainer.run_writer import read_photos, read_split

OLD = Path(__file__).parents[1] / "fixtures" / "0.1-before-moves"
CLASSES = ("brick", "grass", "stars")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the files, because some are changed when they are opened."""
    return Path(shutil.copytree(OLD, tmp_path / "old", symlinks=True))


def captured_image() -> np.ndarray:
    (path,) = (OLD / "captures").rglob("*.jpg")
    image = cv2.imread(str(path))
    assert image is not None
    return image


def test_a_bundle_is_opened_verified_and_classifies_as_it_did() -> None:
    bundle = edge_agent.open_bundle(OLD / "ground-1.edgeloop")
    manifest = bundle.manifest
    assert (manifest.name, manifest.version, bundle.labels) == ("ground", "1", CLASSES)
    assert manifest.metrics.images == 9
    expected = bundle.canary()
    assert len(expected) > 0
    with edge_agent.open(OLD / "ground-1.edgeloop", threads=1) as classifier:
        for image in expected:
            found = classifier.classify(decode_image(bundle.read(image.file), image.file))
            np.testing.assert_allclose(found.scores, image.scores, atol=0.02)


def test_a_run_is_read_by_the_trainer_and_the_converter() -> None:
    run = open_run(OLD / "run")
    assert (run.labels, run.spec.size, len(run.photos)) == (CLASSES, (32, 32), 60)
    assert {split: len(run.split(split)) for split in ("train", "val", "test")} == {"train": 42, "val": 9, "test": 9}
    root, photos = read_photos(OLD / "run")
    assert (root, len(photos)) == (Path("/srv/photos"), 60)
    assert len(read_split(OLD / "run")) == 60


@pytest.mark.slow
def test_the_network_of_a_run_is_loaded_and_becomes_the_same_model(tmp_path: Path) -> None:
    from converter.tflite import float_model

    run = open_run(OLD / "run")
    with native_noise_hidden():
        import keras

        network = keras.saving.load_model(run.path / "model.keras")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype(np.float32)
    from edge_agent.inference.interpreter import Interpreter

    with Interpreter(float_model.of_run(run, tmp_path / "scratch")) as model:
        model.input()[:] = pixels
        model.invoke()
        np.testing.assert_allclose(model.output(), network.predict(pixels, verbose=0), atol=1e-4)


def test_a_store_with_two_versions_is_whole_and_goes_back_to_the_first(old: Path) -> None:
    store = ModelStore(old / "state")
    status = store.status()
    assert [(one.version, one.status) for one in status.installed] == [("2", "probation"), ("1", "good")]
    assert status.current is not None
    assert status.current.starts == 1
    assert status.current.canary is not None
    assert status.current.canary.passed
    assert status.current.digest == edge_agent.open_bundle(old / "state" / "current").digest
    assert store.rollback(reason="asked for").version == "1"
    assert store.starting().version == "1"
    assert store.status().failures[0].version == "2"


def test_the_score_counts_of_a_store_go_on(old: Path) -> None:
    digest = next(one.digest for one in ModelStore(old / "state").status().installed if one.version == "2")
    days = DailyScoreCounts(old / "state").of(digest)["door"]
    assert {day: (counts.frames, counts.labels) for day, counts in days.items()} == {"2026-11-28": (3, {"brick": 3})}


def test_spooled_events_wait_to_be_sent(old: Path) -> None:
    with Spool(old / "state" / "spool.sqlite") as spool:
        assert (spool.on_disk, spool.depth, spool.dropped) == (True, 3, 0)
        events = [waiting.event for waiting in spool.waiting(10)]
    assert {event.topic for event in events} == {"edgeloop/porch-pi/door/event"}
    assert [event.payload for event in events] == [b'{"v":1,"seq":%d,"label":"brick"}' % number for number in range(3)]


def test_a_capture_is_found_for_review() -> None:
    (metadata,) = (OLD / "captures").glob("*/*.json")
    capture = read_capture(metadata)
    assert capture is not None
    assert (capture.device, capture.camera, capture.guess) == ("porch-pi", "door", "brick")
    assert (capture.height, capture.width) == captured_image().shape[:2]
    found = find_frames(OLD / "captures")
    assert [frame.sha256 for frame in found.frames] == [capture.sha256]
    assert not found.problems


def test_annotations_are_read_and_added_to(old: Path) -> None:
    log = Annotations(old / "captures")
    sha256 = find_frames(old / "captures").frames[0].sha256
    assert (list(log.latest), log.problems) == ([sha256], [])
    assert (log.latest[sha256].verdict, log.latest[sha256].label) == ("label", "brick")
    log.add([Annotation(sha256=sha256, verdict="skip")])
    assert Annotations(old / "captures").latest[sha256].verdict == "skip"
