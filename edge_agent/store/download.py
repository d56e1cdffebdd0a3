"""A bundle from a web server, bounded in size and time, and taken up again where the connection was dropped."""

from __future__ import annotations

import base64
import hashlib
import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from .._version import __version__
from ..atomic_files import replacing
from ..bundle.archive import MAX_BYTES
from ..errors import StoreError

_BLOCK = 64 * 1024
_MOST_REDIRECTS = 5
_MOST_TRIES = 5
"""Tries in a row that bring nothing before giving up; one that brings something starts the count again."""
_PAUSE_S = 0.5
_SILENCE_S = 15.0
"""Seconds without a byte after which a connection counts as dropped."""
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_RANGE = re.compile(r"bytes (\d{1,15})-\d{1,15}/(?:\d{1,15}|\*)\Z")


class _DroppedError(Exception):
    """The connection broke, or the server is busy: worth another try."""


@dataclass
class _Download:
    """What has come so far."""

    file: BinaryIO
    most: int
    deadline: float
    stop: threading.Event
    progress: Callable[[int, int | None], object]
    hash: hashlib._Hash = field(default_factory=hashlib.sha256)
    size: int = 0
    tag: str | None = None

    @property
    def left_s(self) -> float:
        return self.deadline - time.monotonic()

    def restart(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.hash, self.size = hashlib.sha256(), 0


def fetch(
    url: str,
    sha256: str,
    into: Path,
    *,
    max_bytes: int = MAX_BYTES,
    timeout_s: float = 600.0,
    stop: threading.Event | None = None,
    progress: Callable[[int, int | None], object] = lambda _done, _of: None,
) -> Path:
    """Download a file over HTTP or HTTPS. ``into`` then is whole and has the hash asked for, or was not touched.

    Args:
        url: ``http://`` or ``https://``; a name and password in it are sent, and never shown.
        sha256: of the file, hexadecimal.
        into: the file to write; its directory must exist.
        max_bytes: more are not taken.
        timeout_s: seconds for all of it, every try and redirect included.
        stop: set by another thread to give up.
        progress: called with the bytes that are there, and of how many where the server says so.

    Returns:
        ``into``.

    Raises:
        StoreError: it could not be had, is too large, or is another file than asked for.
    """
    sha256 = sha256.lower()
    shown = _shown(url)
    if not _SHA256.match(sha256):
        raise StoreError(f"{shown}: expected a sha256 of 64 hexadecimal digits to check it with")
    stop = threading.Event() if stop is None else stop
    try:
        with replacing(into) as file:
            download = _Download(file, max_bytes, time.monotonic() + timeout_s, stop, progress)
            _fetch(url, download, timeout_s)
            found = download.hash.hexdigest()
            if found != sha256:
                raise StoreError(f"{shown}: another file than asked for: its sha256 is {found}, not {sha256}")
    except OSError as error:
        raise StoreError(f"{into.parent}: cannot be written to: {error.strerror or error}") from error
    return into


def _fetch(url: str, download: _Download, timeout_s: float) -> None:
    tries = 0
    while True:
        before = download.size
        try:
            _try(url, download)
        except _DroppedError as error:
            tries = 1 if download.size > before else tries + 1
            if download.left_s <= 0:
                raise StoreError(
                    f"{_shown(url)}: not through after {timeout_s:g} s ({download.size} bytes came); {error}"
                ) from None
            if tries >= _MOST_TRIES:
                raise StoreError(f"{_shown(url)}: {error}; tried {tries} times") from None
            download.stop.wait(min(_PAUSE_S * 2 ** (tries - 1), max(0.0, download.left_s)))
        else:
            return
        if download.stop.is_set():
            raise StoreError(f"{_shown(url)}: given up, for the agent ends")


def _try(url: str, download: _Download) -> None:
    """One request, with its redirects, from where the last one ended."""
    for _ in range(_MOST_REDIRECTS + 1):
        parts = _parts(url)
        with _connected(parts, download) as connection:
            _ask(connection, parts, download)
            with connection.getresponse() as response:
                if response.status not in (301, 302, 303, 307, 308):
                    _receive(url, response, download)
                    return
                target = urljoin(url, response.headers.get("Location", ""))
        if parts.scheme == "https" and not target.lower().startswith("https:"):
            raise StoreError(f"{_shown(url)}: it points from https to {_shown(target)}; that is not followed")
        url = target
    raise StoreError(f"{_shown(url)}: more than {_MOST_REDIRECTS} redirects")


@contextmanager
def _connected(parts: SplitResult, download: _Download) -> Iterator[http.client.HTTPConnection]:
    """A connection that ends with the time, however slowly its bytes drip, and when asked to stop."""
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=max(0.1, min(_SILENCE_S, download.left_s)))
    with _translated(parts):
        connection.connect()
    # It is taken from the connection as soon as the answer begins.
    line, done = connection.sock, threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            if download.stop.is_set() or download.left_s <= 0:
                # Not SSLSocket's own, which is not for another thread: this one only ends the reading.
                with suppress(OSError):
                    socket.socket.shutdown(line, socket.SHUT_RDWR)

    watcher = threading.Thread(target=watch, name="fetch", daemon=True)
    watcher.start()
    try:
        with _translated(parts):
            yield connection
    finally:
        done.set()
        watcher.join()
        connection.close()


@contextmanager
def _translated(parts: SplitResult) -> Iterator[None]:
    """What the network does wrong, as what is to be done about it."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise StoreError(f"{_shown(parts.geturl())}: its certificate is not good: {error.verify_message}") from None
    except _DiskError as error:
        raise error.cause from None
    except (OSError, http.client.HTTPException) as error:
        raise _DroppedError(_said(error)) from None


class _DiskError(Exception):
    """Carries an OSError of this machine's disk past those of the network."""

    def __init__(self, cause: OSError) -> None:
        self.cause = cause
        super().__init__()


def _ask(connection: http.client.HTTPConnection, parts: SplitResult, download: _Download) -> None:
    headers = {"User-Agent": f"edgeloop/{__version__}", "Accept-Encoding": "identity"}
    if parts.username is not None:  # a redirect to another place does not carry it on
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    if download.size:
        headers["Range"] = f"bytes={download.size}-"
        if download.tag is not None:
            headers["If-Range"] = download.tag
    path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    connection.request("GET", path, headers=headers)


def _receive(url: str, response: http.client.HTTPResponse, download: _Download) -> None:
    _place(url, response, download)
    tag = response.headers.get("ETag")
    if tag is not None or response.status == 200:
        download.tag = tag if tag and tag.startswith('"') else None  # a weak one promises no equal bytes
    whole = None if response.length is None else download.size + response.length
    if whole is not None and whole > download.most:
        raise StoreError(f"{_shown(url)}: it has {whole} bytes, over the {download.most} allowed")
    while block := response.read1(_BLOCK):
        if download.size + len(block) > download.most:
            raise StoreError(f"{_shown(url)}: over the {download.most} bytes allowed")
        try:
            download.file.write(block)
        except OSError as error:
            raise _DiskError(error) from error
        download.hash.update(block)
        download.size += len(block)
        download.progress(download.size, whole)
        if download.stop.is_set() or download.left_s <= 0:
            raise _DroppedError("it came too slowly")
    if whole is None and (download.stop.is_set() or download.left_s <= 0):
        raise _DroppedError("it came too slowly")  # what looks like its end is ours
    if whole is not None and download.size < whole:
        raise _DroppedError(f"the connection was dropped after {download.size} of {whole} bytes")


def _place(url: str, response: http.client.HTTPResponse, download: _Download) -> None:
    """See that what comes is the file, or the part of it that is missing; start again where it is the whole."""
    status = response.status
    if status in (408, 425, 429, 500, 502, 503, 504):
        raise _DroppedError(f"the server answers {status} {_plain(response.reason)}")
    if status == 416 and download.size:
        download.restart()
        raise _DroppedError("the server has less of it than came before")
    if status not in (200, 206):
        raise StoreError(f"{_shown(url)}: the server answers {status} {_plain(response.reason)}")
    if status == 206:
        found = _RANGE.match(response.headers.get("Content-Range", ""))
        if not download.size or found is None or int(found[1]) != download.size:
            download.restart()
            raise _DroppedError("the server sends another part than asked for")
    elif download.size:
        download.restart()


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is none
    except ValueError:
        # It may be the password that makes it none.
        raise StoreError("the address given is none; expected one that begins with http:// or https://") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise StoreError(f"{_shown(url)}: expected an address that begins with http:// or https://")
    if re.search(r"[^\x21-\x7e]", url):
        raise StoreError(f"{_shown(url)}: holds characters that an address writes as %XX")
    return parts


def _shown(url: str) -> str:
    """An address without what may be secret in it: name and password, and the query, which may hold a token."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return "the address"
    place, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return _plain(f"{scheme[:10]}://{place.rpartition('@')[2]}{slash}{path}")


def _said(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {_SILENCE_S:g} s"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection was dropped"
    return _plain(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def _plain(text: object) -> str:
    return "".join(char if char.isprintable() else "?" for char in str(text))[:200]
