"""Preprocessing of frames to model input; the only resize in the repository.

The trainer's cache, the calibrator, `predict` and the agent all call `preprocess`, so an image
gives the same bytes in all four. Frames are BGR everywhere in edgeloop, as OpenCV and Picamera2
deliver them; the spec contains the channel order of the model, and channels are swapped here, after
the resize, where it is cheapest.

The arithmetic is OpenCV's, restricted to the operations whose result does not depend on the
processor (docs/reference/preprocessing.md has the measurements):

* while an axis is at least twice as long as needed, it is halved by the mean of neighbouring pixels, rounded half up;
* one bilinear step in OpenCV's bit-exact variant does the rest.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

Pixels: TypeAlias = npt.NDArray[np.uint8]
Fit = Literal["stretch", "crop", "letterbox"]

DEFAULT_FIT: Fit = "letterbox"
"""Shows the whole frame, unlike crop; keeps shapes, unlike stretch, when photos and camera differ in
aspect ratio; takes half of stretch's time. docs/reference/preprocessing.md has the figures."""

MIN_SIZE, MAX_SIZE = 8, 2048
PAD_LEVEL = 114
"""Grey level of the letterbox bars, close to the mean of most images. Any constant works, because the network is
trained with it."""

_Side = Annotated[int, msgspec.Meta(ge=MIN_SIZE, le=MAX_SIZE)]


class PreprocessSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Specification of the preprocessing; stored in the run and in the bundle.

    Attributes:
        size: height and width of the model input in pixels, 8 to 2048 each.
        fit: ``stretch`` fills the input with the whole frame, ignoring its aspect ratio; ``crop``
            keeps the aspect ratio and cuts the longer axis to its centre; ``letterbox`` keeps the
            aspect ratio and the whole frame, and adds grey bars.
        channels: order of the model's input channels. Frames are always BGR.
    """

    size: tuple[_Side, _Side]
    fit: Fit = DEFAULT_FIT
    channels: Literal["rgb", "bgr"] = "rgb"

    def __post_init__(self) -> None:
        # msgspec checks what it decodes; this checks what scripts construct.
        if len(self.size) != 2 or not all(MIN_SIZE <= side <= MAX_SIZE for side in self.size):
            raise ValueError(f"size must be (height, width), each {MIN_SIZE} to {MAX_SIZE} pixels, not {self.size}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one input image: height, width, 3."""
        return (*self.size, 3)


def preprocess(frame: Pixels, spec: PreprocessSpec, out: Pixels | None = None) -> Pixels:
    """Turn a frame of any size into the model's input.

    Args:
        frame: (H, W, 3) uint8, BGR, levels 0 to 255, at least one pixel. Not modified.
        spec: size, fit and channel order of the input.
        out: (height, width, 3) uint8 to write into, such as a view of the interpreter's input
            tensor; by default a new array. Must not overlap ``frame``.

    Returns:
        ``out``, or the new array: (height, width, 3) uint8 in the spec's channel order.

    Raises:
        TypeError, ValueError: ``frame`` or ``out`` does not have the shape and dtype above.
    """
    _check("frame", frame)
    if out is None:
        out = np.empty(spec.shape, np.uint8)
    else:
        _check("out", out)
        if out.shape != spec.shape:
            raise ValueError(f"out must have the shape {spec.shape}, not {out.shape}")

    source, target = frame, out
    if spec.fit == "crop":
        source = _centre_with_aspect(frame, *spec.size)
    elif spec.fit == "letterbox":
        target = _place_for(frame, out, spec)

    height, width = target.shape[:2]
    resized = halve(source, height, width)
    if resized.shape != target.shape:
        resized = cv2.resize(resized, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)  # type: ignore[assignment]
    if spec.channels == "rgb":
        cv2.cvtColor(resized, cv2.COLOR_BGR2RGB, dst=target)
    else:
        np.copyto(target, resized)
    return out


def scaled_size(rows: int, columns: int, spec: PreprocessSpec) -> tuple[int, int]:
    """Return the size (rows, columns) of the whole frame at the scale of the model input.

    A decoder may scale a frame down to this size, but not below it, without a loss for the model.
    """
    height, width = spec.size
    if spec.fit == "stretch":
        return height, width
    wider = columns * height > rows * width
    if (spec.fit == "letterbox") == wider:
        return max(1, round(rows * width / columns)), width
    return height, max(1, round(columns * height / rows))


def halve(frame: Pixels, height: int, width: int) -> Pixels:
    """Halve each axis while it is at least twice ``height`` or ``width``.

    The last row or column of an odd axis is dropped: on an axis of 449 pixels or more this is not
    visible, and every output pixel stays the exact mean of whole pixels.

    Args:
        frame: (H, W, 3) uint8.
        height: rows the caller will scale to, pixels.
        width: columns the caller will scale to, pixels.

    Returns:
        (H', W', 3) uint8; ``frame`` itself if no axis needs halving.
    """
    while True:
        rows, columns = frame.shape[:2]
        tall, wide = rows >= 2 * height, columns >= 2 * width
        if not (tall or wide):
            return frame
        even = frame[: rows // 2 * 2 if tall else rows, : columns // 2 * 2 if wide else columns]
        to = (columns // 2 if wide else columns, rows // 2 if tall else rows)
        # Halving both axes at once is the only area resize that OpenCV has vectorised. Along one axis, bilinear
        # at exactly one half gives the same mean, is faster than INTER_AREA, and is documented to be bit-exact.
        interpolation = cv2.INTER_AREA if tall and wide else cv2.INTER_LINEAR_EXACT
        frame = cv2.resize(even, to, interpolation=interpolation)  # type: ignore[assignment]


def _centre_with_aspect(frame: Pixels, height: int, width: int) -> Pixels:
    """Return the largest centred part of the frame with the aspect ratio height : width, as a view."""
    rows, columns = frame.shape[:2]
    if columns * height > rows * width:
        keep = max(1, round(rows * width / height))
        left = (columns - keep) // 2
        return frame[:, left : left + keep]
    keep = max(1, round(columns * height / width))
    top = (rows - keep) // 2
    return frame[top : top + keep]


def _place_for(frame: Pixels, out: Pixels, spec: PreprocessSpec) -> Pixels:
    """Fill the letterbox bars of ``out`` with grey, and return the view for the frame between them."""
    rows, columns = frame.shape[:2]
    height, width = spec.size
    fitted = scaled_size(rows, columns, spec)
    top, left = (height - fitted[0]) // 2, (width - fitted[1]) // 2
    out[:top], out[top + fitted[0] :] = PAD_LEVEL, PAD_LEVEL
    out[:, :left], out[:, left + fitted[1] :] = PAD_LEVEL, PAD_LEVEL
    return out[top : top + fitted[0], left : left + fitted[1]]


def _check(name: str, pixels: Any) -> None:
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
        found = f"{pixels.dtype} array" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise TypeError(f"{name} must be a uint8 array, not {found}")
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ValueError(f"{name} must have the shape (height, width, 3) with at least one pixel, not {pixels.shape}")
