"""Cameras: each an iterator of timestamped frames, opened and closed as a context manager."""

from __future__ import annotations

from .frames import ArrayFrame, Camera, Frame, ListCamera
from .latest import LatestFrames

__all__ = ["ArrayFrame", "Camera", "Frame", "LatestFrames", "ListCamera"]
