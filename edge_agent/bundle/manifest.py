"""What a bundle says of itself: `manifest.json` and `canary/expected.json` as typed values.

docs/reference/bundle.md describes every field. Unknown fields are ignored, so that a later agent may add
some without locking out this one; a change that an older agent must not ignore raises `FORMAT`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from ..monitoring.score_counts import ScoreCounts
from ..preprocess import PreprocessSpec

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
    """One other file of the bundle."""

    sha256: Digest
    size: Size


class TensorEntry(msgspec.Struct, frozen=True):
    """Shape, dtype and affine quantization (real = scale * (stored - zero_point)) of one tensor."""

    shape: tuple[int, ...]
    dtype: Literal["uint8", "int8", "float32"]
    scale: float = 0.0
    zero_point: int = 0


class Tensors(msgspec.Struct, frozen=True):
    """The model's one input and one output."""

    input: TensorEntry
    output: TensorEntry


class Thresholds(msgspec.Struct, frozen=True):
    """Score a label must reach to be decided (``enter``), and stay above to be kept (``leave``)."""

    enter: Fraction = 0.6
    leave: Fraction = 0.4


class Scored(msgspec.Struct, frozen=True):
    """How one model did on the test split, through `edge_agent.Classifier`. ``per_class`` is recall by label."""

    accuracy: Fraction
    per_class: dict[str, Fraction]
    calibration_error: Fraction


class Metrics(msgspec.Struct, frozen=True, rename={"float32": "float", "images": "pictures"}):
    """The float model and the one in the bundle on the same frozen test split.

    ``agreement`` is the share of images on which both name the same class first. ``seen``: how sure the one in the
    bundle was of them; None in bundles of before.
    """

    images: Size
    float32: Scored
    model: Scored
    agreement: Fraction
    seen: ScoreCounts | None = None


class Calibration(msgspec.Struct, frozen=True, rename={"images": "pictures"}):
    """The representative dataset the integer ranges were measured on.

    ``growth``: how much wider the ranges are than those of the first half of the images, as a share of their width,
    mean of the tensors. ``fingerprint``: of the images, in their order. ``per_class`` is empty where they have no
    classes.
    """

    images: Size
    per_class: dict[str, Size]
    seed: int
    source: Text
    growth: Fraction
    fingerprint: Digest


class Rung(msgspec.Struct, frozen=True):
    """One way of quantizing that was tried, and how it did on the test split; the last one is in the bundle."""

    name: Text
    did: Text
    bytes: Size
    accuracy: Fraction
    agreement: Fraction
    passed: bool


class Provenance(msgspec.Struct, frozen=True):
    """Where the model comes from. ``calibration`` is None for a float model; ``overridden`` names refused checks."""

    run: Text
    backbone: Text
    data_fingerprint: Digest
    edgeloop: Text
    converter: Text
    calibration: Calibration | None
    rungs: tuple[Rung, ...]
    overridden: tuple[Text, ...] = ()


class Manifest(msgspec.Struct, frozen=True):
    """`manifest.json`. ``files`` lists every other file but the signature, so its digest covers them all."""

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
    """A test image that travels with the model: the device must score it as the desktop did, within a tolerance."""

    file: str
    label: str
    scores: tuple[Fraction, ...]


def version_key(version: str) -> tuple[int, ...]:
    """A dotted version as numbers to compare: 1.10 is newer than 1.9, and 1.0 equals 1."""
    numbers = [int(part) for part in version.split(".")]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
