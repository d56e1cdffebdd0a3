"""Writes the standard TFLite metadata and the labels into `model.tflite`, for MediaPipe, Android and other programs.

The metadata follows the published schema `metadata_schema.fbs` of TensorFlow Lite Support, identifier M001. The numbers
in this module are the positions of the fields in the tables of this schema. The labels are appended to the model as a
zip archive, as the field `associated_files` requires.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence

import flatbuffers
import numpy as np
from flatbuffers.number_types import UOffsetTFlags

from ..run_reader import Run
from .graph import Graph

METADATA = "TFLITE_METADATA"
_IDENTIFIER = b"M001"
_PARSER = "1.0.0"
"""Oldest version of the metadata parser that supports every field used here."""
_LABELS = "labels.txt"
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)

_TENSOR_AXIS_LABELS = 2
_IMAGE_PROPERTIES = 2
_RGB = 1
_NORMALIZATION_OPTIONS = 1

_Field = tuple[int, Callable[[flatbuffers.Builder, int], None]]


def with_metadata(model: bytes, run: Run, *, name: str, version: str, labels: bytes) -> bytes:
    """Return the model with metadata for its input, its output and its labels.

    Args:
        model: the ``.tflite`` without metadata.
        run: run from which the model was converted.
        name: name of the model.
        version: version of the model.
        labels: content of labels.txt.
    """
    graph = Graph(model)
    graph.set_metadata(METADATA, _described(run, name, version))
    file = io.BytesIO(graph.content())
    with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
        info = zipfile.ZipInfo(_LABELS, _ZIP_EPOCH)
        info.create_system, info.external_attr = 3, 0o644 << 16
        archive.writestr(info, labels)
    return file.getvalue()


def _described(run: Run, name: str, version: str) -> bytes:
    builder = flatbuffers.Builder(1024)
    height, width = run.spec.size
    image = _table(builder, 2, _int8(0, _RGB))
    # Pixel levels are passed unchanged: the graph contains the normalization.
    unchanged = _table(builder, 2, _offset(0, _floats(builder, [0.0])), _offset(1, _floats(builder, [1.0])))
    normalization = _table(builder, 2, _uint8(0, _NORMALIZATION_OPTIONS), _offset(1, unchanged))
    given = _table(
        builder,
        7,
        _text(builder, 0, "image"),
        _text(builder, 1, f"{height}x{width} RGB image, levels 0 to 255; fitted by {run.spec.fit}"),
        _offset(3, _table(builder, 3, _uint8(0, _IMAGE_PROPERTIES), _offset(1, image))),
        _offset(4, _vector(builder, [normalization])),
        _offset(5, _table(builder, 2, _offset(0, _floats(builder, [255.0])), _offset(1, _floats(builder, [0.0])))),
    )
    labels = _table(
        builder,
        5,
        _text(builder, 0, _LABELS),
        _text(builder, 1, "class names, line i for output i"),
        _int8(2, _TENSOR_AXIS_LABELS),
    )
    made = _table(
        builder,
        7,
        _text(builder, 0, "scores"),
        _text(builder, 1, "softmax score of each class, 0 to 1"),
        _offset(5, _table(builder, 2, _offset(0, _floats(builder, [1.0])), _offset(1, _floats(builder, [0.0])))),
        _offset(6, _vector(builder, [labels])),
    )
    subgraph = _table(builder, 10, _offset(2, _vector(builder, [given])), _offset(3, _vector(builder, [made])))
    classes = ", ".join(run.labels[:10]) + (" and others" if len(run.labels) > 10 else "")
    root = _table(
        builder,
        8,
        _text(builder, 0, name),
        _text(builder, 1, f"Classifies {classes}. {run.backbone}, trained by edgeloop, run {run.id}."),
        _text(builder, 2, version),
        _offset(3, _vector(builder, [subgraph])),
        _text(builder, 7, _PARSER),
    )
    builder.Finish(root, _IDENTIFIER)
    return bytes(builder.Output())


# --- one table, field by field: objects that a table refers to must be built before it ------


def _table(builder: flatbuffers.Builder, size: int, *fields: _Field) -> int:
    builder.StartObject(size)
    for place, put in fields:
        put(builder, place)
    return int(builder.EndObject())


def _offset(place: int, target: int) -> _Field:
    pointed = UOffsetTFlags.py_type(target)
    return place, lambda builder, slot: builder.PrependUOffsetTRelativeSlot(slot, pointed, 0)


def _text(builder: flatbuffers.Builder, place: int, text: str) -> _Field:
    return _offset(place, builder.CreateString(text))


def _uint8(place: int, value: int) -> _Field:
    return place, lambda builder, slot: builder.PrependUint8Slot(slot, value, 0)


def _int8(place: int, value: int) -> _Field:
    return place, lambda builder, slot: builder.PrependInt8Slot(slot, value, 0)


def _floats(builder: flatbuffers.Builder, values: Sequence[float]) -> int:
    return int(builder.CreateNumpyVector(np.array(values, "<f4")))


def _vector(builder: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())
