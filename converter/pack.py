"""Model, labels, figures and canary pictures put together as a bundle."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

import cv2
import msgspec

import edge_agent
from edge_agent.bundle import CARD, EXPECTED, LABELS, MODEL, write_bundle
from edge_agent.classifier import Classifier
from edge_agent.errors import ConfigError
from edge_agent.manifest import (
    FORMAT,
    Calibration,
    CanaryPicture,
    Manifest,
    Metrics,
    Name,
    Provenance,
    Thresholds,
    Version,
)
from edge_agent.pictures import decode_picture
from edge_agent.preprocess import halve

from .calibration import choose
from .run import Run

CANARIES = 24
CANARY_JPEG_QUALITY = 95
MIN_AGENT = "0.1"


def parse_name(path: Path) -> tuple[str, str]:
    """Name and version out of ``NAME-VERSION.edgeloop``.

    Raises:
        ConfigError: the file is not called so.
    """
    name, _, number = path.stem.rpartition("-")
    try:
        parsed = msgspec.convert((name, number), tuple[Name, Version])
    except msgspec.ValidationError:
        parsed = None
    if parsed is None or path.suffix != ".edgeloop":
        raise ConfigError(
            f"{path.name}: a bundle is called NAME-VERSION.edgeloop, such as birds-3.edgeloop or door-1.2.edgeloop "
            "(name: small letters, digits, - and _; version: numbers and dots)"
        )
    return parsed


def pack(out: Path, run: Run, model: bytes, metrics: Metrics, calibration: Calibration) -> str:
    """Write the bundle of a run's quantized model; returns its digest.

    Args:
        out: the file, called NAME-VERSION.edgeloop.
        run: the run it comes from.
        model: the int8 ``.tflite``.
        metrics: what the gate measured.
        calibration: what the ranges were measured on.
    """
    name, number = parse_name(out)
    with Classifier(model, labels=run.labels, spec=run.spec) as classifier:
        tensors = classifier.tensors
        canaries, expected = _canaries(run, classifier)
    labels = "".join(f"{label}\n" for label in run.labels).encode()
    manifest = Manifest(
        format=FORMAT,
        name=name,
        version=number,
        # The training's time, so that packing the same run twice gives the same bytes.
        created=run.created,
        min_agent=MIN_AGENT,
        labels_sha256=hashlib.sha256(labels).hexdigest(),
        preprocess=run.spec,
        tensors=tensors,
        outputs="softmax",
        thresholds=Thresholds(),
        metrics=metrics,
        provenance=Provenance(
            run=run.id,
            backbone=run.backbone,
            data_fingerprint=run.fingerprint,
            edgeloop=edge_agent.__version__,
            quantizer=f"tensorflow {version('tensorflow')} TFLiteConverter, static int8",
            calibration=calibration,
        ),
        files={},
    )
    card = _card(manifest, run).encode()
    expected_json = msgspec.json.format(msgspec.json.encode(expected), indent=2) + b"\n"
    return write_bundle(out, manifest, {MODEL: model, LABELS: labels, CARD: card, EXPECTED: expected_json, **canaries})


def _canaries(run: Run, classifier: Classifier) -> tuple[dict[str, bytes], list[CanaryPicture]]:
    """Test pictures, balanced over the classes, and the scores this model gives them here.

    Pictures much larger than the input are halved first, by the device's own code: the bundle stays
    small, and the scores are those of the very file that travels.
    """
    files, expected = {}, []
    height, width = run.spec.size
    for place, (frame, photo) in enumerate(run.read(choose(run.split("test"), CANARIES, seed=0))):
        name = f"canary/{place:03d}.jpg"
        small = halve(frame, 2 * height, 2 * width)
        data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, CANARY_JPEG_QUALITY])[1].tobytes()
        scores = classifier.classify(decode_picture(data, name)).scores
        files[name] = data
        expected.append(CanaryPicture(name, photo.label, tuple(round(float(score), 6) for score in scores)))
    return files, expected


def _card(manifest: Manifest, run: Run) -> str:
    """`card.md`: what a person should know before using the model."""
    metrics, provenance = manifest.metrics, manifest.provenance
    height, width = manifest.preprocess.size
    before, after = metrics.float32.per_class, metrics.int8.per_class
    rows = [
        f"| {label.replace('|', '/')} | {_percent(before.get(label))} | {_percent(after.get(label))} |"
        for label in run.labels
    ]
    float_share, int8_share = _percent(metrics.float32.accuracy), _percent(metrics.int8.accuracy)
    weakest = min(after, key=lambda label: after[label])
    return "\n".join(
        [
            f"# {manifest.name} {manifest.version}",
            "",
            f"Tells {len(run.labels)} classes apart in one camera frame: {', '.join(run.labels)}.",
            "",
            f"- Network: {provenance.backbone}, int8, input {height}x{width} ({manifest.preprocess.fit})",
            f"- Trained on {len(run.split('train'))} pictures (run {provenance.run})",
            f"- Integer ranges measured on {provenance.calibration.pictures} of them",
            f"- Tested on {metrics.pictures} pictures it never saw",
            f"- Recognises {float_share} of those in float, {int8_share} in int8",
            *([f"- Weakest class: {weakest}, {_percent(after[weakest])}"] if after[weakest] < 1 else []),
            "- Names one of these classes whatever it sees; below the thresholds the agent says `unknown`",
            "",
            "| class | recognised, float | int8 |",
            "| --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _percent(share: float | None) -> str:
    return "no test pictures" if share is None else f"{100 * share:.1f} %"
