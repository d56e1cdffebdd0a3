"""Typed values for `manifest.json` and `canary/expected.json`.

docs/reference/bundle.md describes every field. Unknown fields are ignored, so that later versions may add
fields and older agents can still read the bundle. A change that older agents must not ignore increases `FORMAT`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from ..monitoring.score_counts import ScoreCounts
from ..preprocessing import PreprocessSpec

FORMAT = 1

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?\Z")]
Version = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,9}(?:\.[0-9]{1,9}){0,3}\Z")]
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Size = Annotated[int, msgspec.Meta(ge=0)]
# Shown on terminals, so without control characters.
Text = Annotated[str, msgspec.Meta(max_length=1000, pattern=r"^[^\x00-\x1f\x7f-\x9f]*\Z")]
Precision = Literal["int8", "float16", "float32"]


class FileEntry(msgspec.Struct, frozen=True):
    """Hash and size of one file of the bundle."""

    sha256: Digest
    size: Size


class TensorEntry(msgspec.Struct, frozen=True):
    """Shape, dtype and affine quantization (real = scale * (stored - zero_point)) of one tensor."""

    shape: tuple[int, ...]
    dtype: Literal["uint8", "int8", "float32"]
    scale: float = 0.0
    zero_point: int = 0


class Tensors(msgspec.Struct, frozen=True):
    """The only input tensor and the only output tensor of the model."""

    input: TensorEntry
    output: TensorEntry


class Thresholds(msgspec.Struct, frozen=True):
    """A label is decided if its score is at least ``enter``, and kept while its score is at least ``leave``."""

    enter: Fraction = 0.6
    leave: Fraction = 0.4


class Scored(msgspec.Struct, frozen=True):
    """Metrics of one model on the test split, measured with `edge_agent.Classifier`. ``per_class``: recall by class."""

    accuracy: Fraction
    per_class: dict[str, Fraction]
    calibration_error: Fraction


class Metrics(msgspec.Struct, frozen=True, rename={"float32": "float", "images": "pictures", "score_counts": "seen"}):
    """Metrics of the float model and of the bundle's model on the same frozen test split.

    Attributes:
        images: number of test images.
        float32: metrics of the float model.
        model: metrics of the model in the bundle.
        agreement: share of images to which both models give the same top class, 0 to 1.
        score_counts: histogram of the highest score of each image, and the number of images by predicted label, with
            the bundle's model; None in older bundles.
    """

    images: Size
    float32: Scored
    model: Scored
    agreement: Fraction
    score_counts: ScoreCounts | None = None


class Calibration(msgspec.Struct, frozen=True, rename={"images": "pictures"}):
    """Images on which the ranges of the integer tensors were measured (representative dataset).

    Attributes:
        images: number of images.
        per_class: number of images by class; empty if the images have no classes.
        seed: random seed of the selection.
        source: split or folder of the images.
        growth: how much narrower a tensor's range would be if only the first half of the images had been used, as a
            share of the width of the range from all images; mean over the tensors. A small value means that more
            images would hardly widen the ranges.
        fingerprint: SHA-256 over the SHA-256 hashes of the images, in the order in which they were used.
    """

    images: Size
    per_class: dict[str, Size]
    seed: int
    source: Text
    growth: Fraction
    fingerprint: Digest


class Rung(msgspec.Struct, frozen=True):
    """A quantization method that was tried, and its result on the test split. The bundle uses the last method tried."""

    name: Text
    did: Text
    bytes: Size
    accuracy: Fraction
    agreement: Fraction
    passed: bool


class Provenance(msgspec.Struct, frozen=True):
    """Origin of the model.

    ``calibration`` is None for a float model. ``overridden`` names the checks that failed and were ignored.
    """

    run: Text
    backbone: Text
    data_fingerprint: Digest
    edgeloop: Text
    converter: Text
    calibration: Calibration | None
    rungs: tuple[Rung, ...]
    overridden: tuple[Text, ...] = ()


class Manifest(msgspec.Struct, frozen=True):
    """Contents of `manifest.json`.

    ``files`` lists all other files except the signature, so the digest of the manifest covers these files too.
    """

    format: int
    name: Name
    version: Version
    created: Text
    min_agent: Version
    labels_sha256: Digest
    preprocess: PreprocessSpec
    precision: Precision
    tensors: Tensors
    outputs: Literal["softmax"]
    thresholds: Thresholds
    metrics: Metrics
    provenance: Provenance
    files: dict[str, FileEntry]


class CanaryImage(msgspec.Struct, frozen=True):
    """Test image in the bundle: the device must compute the same scores as the desktop, within a tolerance."""

    file: str
    label: str
    scores: tuple[Fraction, ...]


def version_key(version: str) -> tuple[int, ...]:
    """Return a dotted version as numbers that can be compared: 1.10 is newer than 1.9, and 1.0 equals 1."""
    numbers = [int(part) for part in version.split(".")]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
