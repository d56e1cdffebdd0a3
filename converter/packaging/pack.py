"""Assembles a bundle from the model, its labels, metrics and canary images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import msgspec

import edge_agent
from edge_agent.bundle import manifest as described
from edge_agent.bundle import write_bundle
from edge_agent.bundle.archive import CARD, EXPECTED, LABELS, MODEL
from edge_agent.bundle.manifest import FORMAT, Calibration, Manifest, Name, Provenance, Thresholds, Version
from edge_agent.bundle.signature import sign
from edge_agent.errors import ConfigError
from edge_agent.inference.classifier import Classifier

from ..gate import Verdict
from ..quantization.ladder import Rung
from ..run_reader import Run
from ..tflite.metadata import with_metadata
from . import canary
from .model_card import card

MIN_AGENT = "0.1"


@dataclass(frozen=True)
class Packed:
    """Contents of a bundle.

    Attributes:
        model: the ``.tflite`` file.
        verdict: what the gate measured for the model.
        rungs: every rung that was tried, with its verdict and with True if it passed the gate.
        calibration: record of the images on which the ranges were measured; None for a float model.
        overridden: names of the checks that failed but were allowed to fail.
    """

    model: bytes
    verdict: Verdict
    rungs: Sequence[tuple[Rung, Verdict, bool]]
    calibration: Calibration | None
    overridden: tuple[str, ...] = ()


def parse_name(path: Path) -> tuple[str, str]:
    """Parse the name and the version from a file name of the form ``NAME-VERSION.edgeloop``.

    Raises:
        ConfigError: the file name does not have this form.
    """
    name, _, number = path.stem.rpartition("-")
    try:
        parsed = msgspec.convert((name, number), tuple[Name, Version])
    except msgspec.ValidationError:
        parsed = None
    if parsed is None or path.suffix != ".edgeloop":
        raise ConfigError(
            f"{path.name}: expected NAME-VERSION.edgeloop, such as birds-3.edgeloop or door-1.2.edgeloop "
            "(name: lowercase letters, digits, - and _; version: numbers and dots)"
        )
    return parsed


def pack(out: Path, run: Run, packed: Packed, *, key: Path | None = None) -> str:
    """Write the bundle of a run's converted model and return its digest.

    Args:
        out: path of the bundle; its file name must have the form NAME-VERSION.edgeloop.
        run: the run that was converted.
        packed: contents of the bundle.
        key: SSH key with which the bundle is signed; it is not signed if None.
    """
    name, number = parse_name(out)
    labels = "".join(f"{label}\n" for label in run.labels).encode()
    model = with_metadata(packed.model, run, name=name, version=number, labels=labels)
    with Classifier(model, labels=run.labels, spec=run.spec) as classifier:
        tensors = classifier.tensors
        canaries, expected = canary.canaries(run, canary.choose(packed.verdict.model), classifier)
    manifest = Manifest(
        format=FORMAT,
        name=name,
        version=number,
        # The time of the training, so that packing the same run twice gives the same bytes.
        created=run.created,
        min_agent=MIN_AGENT,
        labels_sha256=hashlib.sha256(labels).hexdigest(),
        preprocess=run.spec,
        precision=packed.rungs[-1][0].precision,
        tensors=tensors,
        outputs="softmax",
        thresholds=Thresholds(),
        metrics=packed.verdict.metrics(),
        provenance=Provenance(
            run=run.id,
            backbone=run.backbone,
            data_fingerprint=run.fingerprint,
            edgeloop=edge_agent.__version__,
            converter=f"tensorflow {version('tensorflow')}, litert-quantizer {version('litert-quantizer')}",
            calibration=packed.calibration,
            rungs=tuple(
                described.Rung(rung.name, rung.did, len(rung.model), verdict.model.accuracy, verdict.agreement, passed)
                for rung, verdict, passed in packed.rungs
            ),
            overridden=packed.overridden,
        ),
        files={},
    )
    written = card(manifest, run, packed.verdict.model.confused_pairs()).encode()
    expected_json = msgspec.json.format(msgspec.json.encode(expected), indent=2) + b"\n"
    files = {MODEL: model, LABELS: labels, CARD: written, EXPECTED: expected_json, **canaries}
    return write_bundle(out, manifest, files, sign=None if key is None else lambda raw: sign(raw, key))
