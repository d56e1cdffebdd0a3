"""Discovery of the cameras connected to this machine."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from . import picamera

# From linux/videodev2.h: a request number encodes direction, size of the structure, 'V' and a number.
_QUERYCAP, _ENUM_FMT, _ENUM_FRAMESIZES = 0x80685600, 0xC0405602, 0xC02C564A
_CAPTURE, _STREAMING = 0x1, 0x04000000
_DISCRETE = 1
_MOST = 64


class Found(NamedTuple):
    """A camera: its ``source`` for agent.yaml, its name, and the formats that it offers, one line each."""

    source: int | str
    name: str
    formats: tuple[str, ...]


def available(devices: Path = Path("/dev")) -> list[Found]:
    """List the capture devices under ``/dev/video*``, then the cameras known to Picamera2.

    A device is given by the name that udev makes of its serial number or its port, as its own number may change at
    the next boot.
    """
    found = []
    links = _stable_names(devices)
    for path in sorted(devices.glob("video*"), key=lambda path: (len(path.name), path.name)):
        with suppress(OSError):
            name, formats = _described(path)
            number = path.name.removeprefix("video")
            plain = int(number) if number.isdecimal() else str(path)
            found.append(Found(links.get(path.resolve(), plain), name, formats))
    found += [
        Found("picamera" if not number else f"picamera:{number}", name, ())
        for number, name in enumerate(picamera.names())
    ]
    return found


def _stable_names(devices: Path) -> dict[Path, str]:
    """The links in ``v4l/by-id``, or else in ``v4l/by-path``, by the device that they lead to."""
    return {
        link.resolve(): str(link)
        for folder in ("by-path", "by-id")
        for link in sorted((devices / "v4l" / folder).glob("*"), reverse=True)
    }


def _described(path: Path) -> tuple[str, tuple[str, ...]]:
    """Name and formats of a device.

    Raises:
        OSError: The device cannot be queried, or it does not capture (one camera appears as several devices).
    """
    device = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        # struct v4l2_capability: driver, card, bus_info, version, capabilities, device_caps, reserved
        reply = fcntl.ioctl(device, _QUERYCAP, bytes(104))
        _, card, _, _, _, capabilities = struct.unpack_from("16s32s32s3I", reply)
        if not capabilities & _CAPTURE or not capabilities & _STREAMING:
            raise OSError(f"{path} is not a capture device")
        return card.split(b"\0")[0].decode(errors="replace"), tuple(_formats(device))
    finally:
        os.close(device)


def _formats(device: int) -> Iterator[str]:
    for index in range(_MOST):
        # struct v4l2_fmtdesc: index, type (1 is capture), flags, description, pixelformat, mbus_code, reserved
        try:
            reply = fcntl.ioctl(device, _ENUM_FMT, struct.pack("3I32s5I", index, 1, 0, b"", *[0] * 5))
        except OSError:
            return
        code = struct.unpack_from("3I32sI", reply)[4]
        sizes = ", ".join(_sizes(device, code))
        yield struct.pack("I", code).decode("ascii", "replace").strip() + (f": {sizes}" if sizes else "")


def _sizes(device: int, code: int) -> Iterator[str]:
    for index in range(_MOST):
        # struct v4l2_frmsizeenum: index, pixel_format, type, then width and height where they are discrete
        try:
            reply = fcntl.ioctl(device, _ENUM_FRAMESIZES, struct.pack("11I", index, code, *[0] * 9))
        except OSError:
            return
        _, _, kind, width, height = struct.unpack_from("5I", reply)
        if kind != _DISCRETE:
            return
        yield f"{width}x{height}"
