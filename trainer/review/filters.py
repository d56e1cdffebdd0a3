"""Which frames a person wants to see."""

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
    """Which frames a person wants to see; the defaults are all that is open.

    Attributes:
        status: frames without a decision, with one, with one ``label``, or with several people's different ones.
        label: the class, for the status ``label``.
        camera: ``device/camera``.
        guess: what the model takes them for.
        since, until: days, ``2026-11-28``, both included.
        least, most: score of the guess, 0 to 1.
    """

    status: Literal["open", "decided", "label", "none", "skip", "disputed"] = "open"
    label: str = ""
    camera: str = ""
    guess: str = ""
    since: str = ""
    until: str = ""
    least: float = 0.0
    most: float = 1.0


def mask_of(frames: Sequence[CapturedFrame], wanted: FrameFilter, *, settled: Mask, decisions: Annotations) -> Mask:
    """(n,) whether a frame is wanted by its decision, camera and day; what the model thinks of it is not asked here.

    Args:
        frames: all of them.
        wanted: which.
        settled: (n,) whether there is a decision that is not open.
        decisions: of all frames.
    """
    latest = decisions.latest
    if wanted.status == "open":
        mask = ~settled
    elif wanted.status == "decided":
        mask = settled.copy()
    elif wanted.status == "disputed":
        disputed = decisions.disputed
        mask = _each(frame.sha256 in disputed for frame in frames)
    else:
        mask = _each(_is(latest.get(frame.sha256), wanted) for frame in frames)
    if wanted.camera:
        mask &= _each(camera_of(frame) == wanted.camera for frame in frames)
    if wanted.since or wanted.until:
        until = wanted.until or "9999"
        mask &= _each(wanted.since <= frame.captured_at[:10] <= until for frame in frames)
    return mask


def camera_of(frame: CapturedFrame) -> str:
    """Device and camera; empty where nobody knows."""
    return f"{frame.device}/{frame.camera}" if frame.device or frame.camera else ""


def _is(decision: Annotation | None, wanted: FrameFilter) -> bool:
    if decision is None or decision.verdict != wanted.status:
        return False
    return wanted.status != "label" or decision.label == wanted.label


def _each(values: Any) -> Mask:
    return np.array(list(values), np.bool_)
