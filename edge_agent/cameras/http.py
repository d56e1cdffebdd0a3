"""MJPEG over HTTP, as network cameras and camera servers send it; and a single image, asked for again and again."""

from __future__ import annotations

import base64
import http.client
import ssl
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Self
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from ..config import CameraSettings
from ..errors import CameraError
from .frames import Frame
from .jpeg import MAX_BYTES, JpegFrame
from .opencv import without_password

MJPEG = "multipart/x-mixed-replace"
IMAGE = "image/jpeg"
_REDIRECTS = 5
_LINE_BYTES = 4096
_HEADER_LINES = 64
_CHUNK = 65536


class HttpCamera:
    """A camera at an ``http://`` or ``https://`` address; user name and password may stand in it.

    Args:
        settings: its source; ``fps`` is how often a single image is asked for (1 when left out); ``timeout_s`` bounds
            every wait for the network, and for a whole image.

    Raises (when entered or iterated):
        CameraError: it does not answer, refuses, or sends neither MJPEG nor a JPEG image.
    """

    def __init__(self, settings: CameraSettings) -> None:
        self._settings = settings
        self._url = str(settings.source)
        self._connection: http.client.HTTPConnection | None = None
        self._response: http.client.HTTPResponse | None = None
        self._boundary = b""
        self._due = 0.0

    def __enter__(self) -> Self:
        try:
            self._ask()
        except CameraError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        # Both: an answer without a length takes the socket over.
        for held in (self._response, self._connection):
            if held is not None:
                held.close()
        self._response = self._connection = None

    def __iter__(self) -> Iterator[Frame]:
        images = self._parts() if self._boundary else self._polled()
        for seq, data in enumerate(images):
            yield JpegFrame(data=data, seq=seq)

    def _ask(self) -> None:
        """Send the request, follow where it leads, and look at what comes."""
        where = urlsplit(self._url)
        credentials = _credentials(where)
        for _ in range(_REDIRECTS + 1):
            self.__exit__()
            response = self._sent(where, credentials)
            location = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or location is None:
                break
            try:
                there = urlsplit(urljoin(where.geturl(), location))
            except ValueError as error:
                raise self._error(f"leads to an address that is none: {error}") from error
            if there.scheme != "https" and (there.scheme != "http" or where.scheme == "https"):
                raise self._error("leads to an address that is not safe to follow")
            # A password is for the host it was given for, alone.
            credentials = credentials if there.netloc.rpartition("@")[2] == where.netloc.rpartition("@")[2] else None
            where = there
        else:
            raise self._error("leads from one address to the next without end")
        if response.status == 401:
            raise self._error("refuses the user name or password; give them as http://USER:PASSWORD@HOST/")
        if response.status != 200:
            raise self._error(f"answers {response.status} {response.reason}")
        kind = response.headers.get_content_type()
        if kind == MJPEG:
            boundary = str(response.headers.get_param("boundary") or "")
            self._boundary = boundary.strip('"-').encode("latin-1", "replace")
            if not self._boundary:
                raise self._error(f"sends {MJPEG} without a boundary")
        elif kind != IMAGE:
            raise self._error(f"sends {kind}; expected {MJPEG} or {IMAGE}")

    def _sent(self, where: SplitResult, credentials: str | None) -> http.client.HTTPResponse:
        timeout_s = self._settings.timeout_s
        try:
            if where.scheme == "https":
                self._connection = http.client.HTTPSConnection(
                    where.hostname or "", where.port, timeout=timeout_s, context=ssl.create_default_context()
                )
            else:
                self._connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=timeout_s)
            headers = {"User-Agent": "edgeloop"} | ({"Authorization": credentials} if credentials else {})
            target = (where.path or "/") + (f"?{where.query}" if where.query else "")
            self._connection.request("GET", target, headers=headers)
            self._response = self._connection.getresponse()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._error(f"cannot be reached: {_reason(error)}") from error
        return self._response

    def _polled(self) -> Iterator[bytes]:
        interval_s = 1.0 / (self._settings.fps or 1.0)
        while True:
            start = time.monotonic()
            self._due = start + self._settings.timeout_s
            yield self._read(None)
            time.sleep(max(0.0, start + interval_s - time.monotonic()))
            self._ask()

    def _parts(self) -> Iterator[bytes]:
        line = b""
        while True:
            self._due = time.monotonic() + self._settings.timeout_s
            while not self._is_boundary(line):
                line = self._line()
            if line.endswith(b"--"):
                return
            length = None
            for _ in range(_HEADER_LINES):
                line = self._line()
                if not line:
                    break
                name, _, value = line.partition(b":")
                if name.strip().lower() == b"content-length" and value.strip().isdigit():
                    length = int(value)
            else:
                raise self._error("sends headers without end")
            if length is None:
                data, line = self._until_boundary()
            else:
                data, line = self._read(length), b""
            yield data

    def _is_boundary(self, line: bytes) -> bool:
        # Of the dashes some cameras write too many, and some give them as part of the name.
        return line.startswith(b"--") and line.strip(b"-\r\n") == self._boundary

    def _line(self) -> bytes:
        """One line without its end."""
        line = self._received(lambda response: response.readline(_LINE_BYTES))
        if not line.endswith(b"\n") and len(line) == _LINE_BYTES:
            raise self._error("sends a header that is too long")
        return line.rstrip(b"\r\n")

    def _read(self, length: int | None) -> bytes:
        """So many bytes; all there are when None."""
        if length is not None and length > MAX_BYTES:
            raise self._error(f"announces an image of {length} bytes; {MAX_BYTES} at most are taken")
        data = bytearray()
        while length is None or len(data) < length:
            chunk = self._received(
                partial(_read, _CHUNK if length is None else min(_CHUNK, length - len(data))), may_end=length is None
            )
            if not chunk:
                break
            data += chunk
            if len(data) > MAX_BYTES:
                raise self._error(f"sends an image of over {MAX_BYTES} bytes")
        return bytes(data)

    def _until_boundary(self) -> tuple[bytes, bytes]:
        """A part that does not say how long it is, and the line behind it."""
        data = bytearray()
        while True:
            line = self._received(lambda response: response.readline(_CHUNK))
            if self._is_boundary(line):
                return bytes(data).removesuffix(b"\n").removesuffix(b"\r"), line.rstrip(b"\r\n")
            data += line
            if len(data) > MAX_BYTES:
                raise self._error(f"sends an image of over {MAX_BYTES} bytes")

    def _received(self, read: Callable[[http.client.HTTPResponse], bytes], *, may_end: bool = False) -> bytes:
        response = self._response
        if response is None:
            raise self._error("is not open")
        if time.monotonic() > self._due:
            # Who waited for it has left; rubbish without end would be read for ever.
            raise self._error(f"sent no image for {self._settings.timeout_s:g} s")
        try:
            data = read(response)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._error(f"stopped delivering: {_reason(error)}") from error
        if not data and not may_end:
            raise self._error("stopped delivering")
        return data

    def _error(self, what: str) -> CameraError:
        return CameraError(f"{without_password(self._url)}: {what}")


def _read(most: int, response: http.client.HTTPResponse) -> bytes:
    return response.read(most)


def _credentials(where: SplitResult) -> str | None:
    if where.username is None:
        return None
    pair = f"{unquote(where.username)}:{unquote(where.password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error) or type(error).__name__
