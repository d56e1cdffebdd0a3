"""Cameras: each an iterator of timestamped frames, opened and closed as a context manager."""

from __future__ import annotations

from .frames import Camera, Frame, ListCamera
from .latest import LatestFrames

__all__ = ["Camera", "Frame", "LatestFrames", "ListCamera"]
