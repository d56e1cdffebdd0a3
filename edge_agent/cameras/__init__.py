"""Cameras: context managers that iterate over timestamped frames."""

from __future__ import annotations

from .frames import ArrayFrame, Camera, Frame, ListCamera
from .latest import LatestFrames

__all__ = ["ArrayFrame", "Camera", "Frame", "LatestFrames", "ListCamera"]
