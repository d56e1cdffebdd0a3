"""Cameras that send MJPEG over HTTP, or a single image per request."""

from __future__ import annotations

import hashlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Self
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from ..config import CameraSettings
from ..errors import CameraError
from .addresses import without_secrets
from .frames import Frame
from .http_auth import Authorize, Credentials, answer
from .jpeg import MAX_BYTES, JpegFrame

MJPEG = "multipart/x-mixed-replace"
IMAGE = "image/jpeg"
# A login page, for example. Other types may be wrong: some cameras send image/jpg, application/octet-stream or none.
_NO_IMAGE = frozenset({"text/html", "application/json", "application/xml", "text/xml"})
_REDIRECTS = 5
_LINE_BYTES = 4096
_HEADER_LINES = 64
_CHUNK = 65536


class HttpCamera:
    """A camera at an ``http://`` or ``https://`` address, which may contain a user name and password.

    Args:
        settings: Source; ``fps`` is the request rate for single images (default 1); ``timeout_s`` limits each wait for
            the network, and the time for a whole image.

    Raises (when entered or iterated):
        CameraError: The camera does not answer, refuses the request, or sends neither MJPEG nor a JPEG image.
    """

    def __init__(self, settings: CameraSettings) -> None:
        self._settings = settings
        self._url = str(settings.source)
        self._connection: http.client.HTTPConnection | None = None
        self._response: http.client.HTTPResponse | None = None
        self._authorize: Authorize | None = None
        self._boundary = b""
        self._boundary_ends_in_dashes = False
        self._due = 0.0

    def __enter__(self) -> Self:
        try:
            self._request()
        except CameraError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        # Close both: a response without a length takes over the socket of the connection.
        for resource in (self._response, self._connection):
            if resource is not None:
                resource.close()
        self._response = self._connection = None

    def __iter__(self) -> Iterator[Frame]:
        images = self._parts() if self._boundary else self._polled()
        for seq, data in enumerate(images):
            yield JpegFrame(data=data, seq=seq)

    def _request(self) -> None:
        """Send the request, and check the type of the response."""
        response = self._final_response()
        if response.status == 401:
            raise self._error("refuses the user name or password; give them as http://USER:PASSWORD@HOST/")
        if response.status != 200:
            raise self._error(f"answers {response.status} {response.reason}")
        kind = response.headers.get_content_type()
        if kind == MJPEG:
            announced = str(response.headers.get_param("boundary") or "").strip('"')
            self._boundary = announced.strip("-").encode("latin-1", "replace")
            self._boundary_ends_in_dashes = announced.endswith("--")
            if not self._boundary:
                raise self._error(f"sends {MJPEG} without a boundary")
        elif kind in _NO_IMAGE or kind.startswith("multipart/"):
            raise self._error(f"sends {kind}; expected {MJPEG} or {IMAGE}")

    def _final_response(self) -> http.client.HTTPResponse:
        """Send the request, answer a demand for the password, and follow redirects."""
        address = urlsplit(self._url)
        credentials = _credentials(address)
        for _ in range(_REDIRECTS + 1):
            response = self._response_of(address, None if credentials is None else self._authorize)
            if response.status == 401 and credentials is not None:
                # Also when the answer to an earlier demand has expired.
                demands = response.headers.get_all("WWW-Authenticate", [])
                self._authorize = answer(demands, credentials)
                if self._authorize is None:
                    raise self._error(f"asks for an unknown kind of password: {', '.join(demands)[:200] or 'none'}")
                response = self._response_of(address, self._authorize)
            location = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or location is None:
                return response
            try:
                target = urlsplit(urljoin(address.geturl(), location))
            except ValueError as error:
                raise self._error(f"redirects to an invalid address: {error}") from error
            if target.scheme != "https" and (target.scheme != "http" or address.scheme == "https"):
                raise self._error("redirects to an address that is not safe to follow")
            # The password is sent only to the host that it was given for.
            same_host = target.netloc.rpartition("@")[2] == address.netloc.rpartition("@")[2]
            credentials = credentials if same_host else None
            address = target
        raise self._error(f"redirects more than {_REDIRECTS} times")

    def _response_of(self, address: SplitResult, authorize: Authorize | None) -> http.client.HTTPResponse:
        self.__exit__()
        target = (address.path or "/") + (f"?{address.query}" if address.query else "")
        headers = {"User-Agent": "edgeloop"} | ({"Authorization": authorize(target)} if authorize else {})
        host, secure, timeout_s = address.hostname or "", address.scheme == "https", self._settings.timeout_s
        try:
            kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
            connection = self._connection = kind(host, address.port, timeout=timeout_s)
            sock = socket.create_connection((host, connection.port), timeout_s)
            with _deadline(sock, timeout_s):
                connection.sock = self._verified(sock, host) if secure else sock
                connection.request("GET", target, headers=headers)
                self._response = connection.getresponse()
        except ssl.SSLCertVerificationError as error:
            raise self._error(
                f"its certificate is not valid: {error.verify_message}; if it is the camera's own, give its authority "
                "or its fingerprint as `tls` of this camera in agent.yaml"
            ) from error
        except TimeoutError as error:
            raise self._error(f"cannot be reached: no answer within {timeout_s:g} s") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._error(f"cannot be reached: {_reason(error)}") from error
        return self._response

    def _verified(self, sock: socket.socket, host: str) -> ssl.SSLSocket:
        """Begin TLS, and check the camera's certificate before anything is sent."""
        tls = self._settings.tls
        context = ssl.create_default_context(cafile=None if tls is None else tls.ca)
        if tls is None or tls.fingerprint is None:
            return context.wrap_socket(sock, server_hostname=host)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        secure = context.wrap_socket(sock, server_hostname=host)
        found = hashlib.sha256(secure.getpeercert(binary_form=True) or b"").hexdigest()
        if found != tls.fingerprint.replace(":", "").lower():
            secure.close()
            raise self._error(f"its certificate has the fingerprint {found}, but agent.yaml expects {tls.fingerprint}")
        return secure

    def _polled(self) -> Iterator[bytes]:
        interval_s = 1.0 / (self._settings.fps or 1.0)
        while True:
            start = time.monotonic()
            self._due = start + self._settings.timeout_s
            data = self._read(None)
            if not data.startswith(b"\xff\xd8"):
                raise self._error("sends something that is not a JPEG image")
            yield data
            time.sleep(max(0.0, start + interval_s - time.monotonic()))
            self._request()

    def _parts(self) -> Iterator[bytes]:
        line = b""
        while True:
            self._due = time.monotonic() + self._settings.timeout_s
            while not self._is_boundary(line):
                line = self._line()
            if line.endswith(b"--") and not self._boundary_ends_in_dashes:
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
                raise self._error(f"sends more than {_HEADER_LINES} header lines for an image")
            if length is None:
                data, line = self._until_boundary()
            else:
                data, line = self._read(length), b""
            yield data

    def _is_boundary(self, line: bytes) -> bool:
        # Some cameras write too many dashes, and some include them in the announced boundary.
        return line.startswith(b"--") and line.strip(b"-\r\n") == self._boundary

    def _line(self) -> bytes:
        """Read one line, and return it without its line break."""
        line = self._received(lambda response: response.readline(_LINE_BYTES))
        if not line.endswith(b"\n") and len(line) == _LINE_BYTES:
            raise self._error(f"sends a header line of over {_LINE_BYTES} bytes")
        return line.rstrip(b"\r\n")

    def _read(self, length: int | None) -> bytes:
        """Read ``length`` bytes, or everything up to the end if it is None."""
        if length is not None and length > MAX_BYTES:
            raise self._error(f"announces an image of {length} bytes; the limit is {MAX_BYTES}")
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
        """Read a part without a length. Returns the part and the boundary line after it."""
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
            raise self._error("the camera is not open")
        if time.monotonic() > self._due:
            # The frame is overdue and its reader has given up; endless garbage must not be read forever.
            raise self._error(f"sent no image for {self._settings.timeout_s:g} s")
        try:
            data = read(response)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._error(f"stopped delivering: {_reason(error)}") from error
        if not data and not may_end:
            raise self._error("stopped delivering")
        return data

    def _error(self, what: str) -> CameraError:
        return CameraError(f"{without_secrets(self._url)}: {what}")


@contextmanager
def _deadline(sock: socket.socket, seconds: float) -> Iterator[None]:
    """End a connection that takes too long in all: a socket's own timeout begins again with every byte.

    Raises:
        TimeoutError: The deadline has passed.
    """
    # A duplicate, because TLS takes over the socket itself.
    duplicate, passed = sock.dup(), threading.Event()

    def end() -> None:
        passed.set()
        with suppress(OSError):
            duplicate.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException):
        if not passed.is_set():
            raise
    finally:
        timer.cancel()
        timer.join()
        duplicate.close()
    # Also after no error: for the parser, a connection that ends within the head of a response ends the head.
    if passed.is_set():
        raise TimeoutError


def _read(most: int, response: http.client.HTTPResponse) -> bytes:
    return response.read(most)


def _credentials(where: SplitResult) -> Credentials | None:
    if where.username is None:
        return None
    return Credentials(unquote(where.username), unquote(where.password or ""))


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error) or type(error).__name__
