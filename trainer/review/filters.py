"""Filter of the frames to show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from ..active_learning.annotations import Annotation, Annotations
from ..active_learning.captured_frames import CapturedFrame

Mask = npt.NDArray[np.bool_]


class FrameFilter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Criteria for the frames to show; by default all open frames.

    Attributes:
        status: `open`: frames without annotation; `decided`: annotated frames; `label`, `none`, `skip`: frames with
            this verdict; `disputed`: frames that people annotated differently.
        label: class name, for the status `label`.
        camera: ``device/camera``; empty for all.
        guess: class predicted by the model; empty for all.
        since, until: first and last day, such as ``2026-11-28``; empty for no limit.
        least, most: range of the score of the predicted class, 0 to 1.
    """

    status: Literal["open", "decided", "label", "none", "skip", "disputed"] = "open"
    label: str = ""
    camera: str = ""
    guess: str = ""
    since: str = ""
    until: str = ""
    least: float = 0.0
    most: float = 1.0


def mask_of(
    frames: Sequence[CapturedFrame], criteria: FrameFilter, *, annotated: Mask, annotations: Annotations
) -> Mask:
    """Select frames by annotation, camera and day; the criteria on the model's prediction are ignored here.

    Args:
        frames: all frames.
        criteria: the filter.
        annotated: (n,) True for frames with an annotation other than `open`.
        annotations: annotations of the frames.

    Returns:
        (n,) True for the selected frames.
    """
    latest = annotations.latest
    if criteria.status == "open":
        mask = ~annotated
    elif criteria.status == "decided":
        mask = annotated.copy()
    elif criteria.status == "disputed":
        disputed = annotations.disputed
        mask = _each(frame.sha256 in disputed for frame in frames)
    else:
        mask = _each(_matches(latest.get(frame.sha256), criteria) for frame in frames)
    if criteria.camera:
        mask &= _each(camera_of(frame) == criteria.camera for frame in frames)
    if criteria.since or criteria.until:
        until = criteria.until or "9999"
        mask &= _each(criteria.since <= frame.captured_at[:10] <= until for frame in frames)
    return mask


def camera_of(frame: CapturedFrame) -> str:
    """Return ``device/camera`` of a frame, or an empty string if unknown."""
    return f"{frame.device}/{frame.camera}" if frame.device or frame.camera else ""


def _matches(annotation: Annotation | None, criteria: FrameFilter) -> bool:
    if annotation is None or annotation.verdict != criteria.status:
        return False
    return criteria.status != "label" or annotation.label == criteria.label


def _each(values: Any) -> Mask:
    return np.array(list(values), np.bool_)
