"""Selection of the camera class for a source."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from ..config import CameraSettings
from .addresses import without_secrets
from .frames import Camera

_NUMBER = re.compile(r"\d{1,3}\Z")
_PICAMERA = re.compile(r"picamera(?::(\d))?\Z")
_STREAMS = frozenset({".avi", ".m3u8", ".mkv", ".mov", ".mp4", ".mpd", ".ts", ".webm"})


def open_camera(settings: CameraSettings) -> Camera:
    """Create the camera for these settings; ``with`` opens it. `CameraSettings` describes the possible sources."""
    source = str(settings.source)
    if (device := _device(source)) is not None:
        from .v4l2 import V4L2Camera

        return V4L2Camera(settings, device)
    if (number := _PICAMERA.match(source)) is not None:
        from .picamera import PiCamera

        return PiCamera(settings, int(number[1] or 0))
    if urlsplit(source).scheme in ("http", "https") and not _is_stream(source):
        from .http import HttpCamera

        return HttpCamera(settings)
    if Path(source).is_dir():
        from .folder import FolderCamera

        return FolderCamera(settings)
    from .opencv import OpenCVCamera

    return OpenCVCamera(settings)


def is_live(settings: CameraSettings) -> bool:
    """Whether the camera is reopened when it stops. True for all sources except files and folders.

    Paths outside /dev that do not exist count as files.
    """
    source = str(settings.source)
    return "://" in source or _device(source) is not None or _PICAMERA.match(source) is not None


def _device(source: str) -> str | None:
    """Path of a video device, which may be a link that is not there yet; None for other sources."""
    if _NUMBER.match(source):
        return f"/dev/video{int(source)}"
    path = Path(source)
    if not source.startswith("/dev/") or path.suffix.lower() in _STREAMS:
        return None
    is_file = path.is_file() or path.is_dir() or path.parts[2:3] == ("shm",)
    return None if is_file else source


def shown_source(settings: CameraSettings) -> str:
    """The source without any password in its address, for messages and logs."""
    return without_secrets(settings.source)


def _is_stream(address: str) -> bool:
    """Whether an HTTP address is a video, which FFmpeg reads; its file name suffix decides."""
    return Path(urlsplit(address).path).suffix.lower() in _STREAMS
