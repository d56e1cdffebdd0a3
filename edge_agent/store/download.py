"""Download of a bundle from a web server, with limits on size and time; resumes after a dropped connection."""

from __future__ import annotations

import base64
import hashlib
import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Iterator
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
_MAX_REDIRECTS = 5
_MAX_TRIES = 5
"""Consecutive tries without any data before giving up; a try that receives data resets the count."""
_PAUSE_S = 0.5
_SILENCE_S = 15.0
"""Seconds without any data after which a connection counts as dropped."""
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_RANGE = re.compile(r"bytes (\d{1,15})-\d{1,15}/(?:\d{1,15}|\*)\Z")


class _DroppedError(Exception):
    """The connection was dropped or the server is busy, so the download is tried again."""


@dataclass
class _Download:
    """State of a download."""

    file: BinaryIO
    max_bytes: int
    deadline: float
    hosts: Collection[str]
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
    hosts: Collection[str] = (),
    progress: Callable[[int, int | None], object] = lambda _done, _of: None,
) -> Path:
    """Download a file over HTTP or HTTPS. On success ``into`` has the given hash; on an error it is unchanged.

    Args:
        url: ``http://`` or ``https://`` URL; a user name and password in it are sent, but never shown.
        sha256: SHA-256 of the file, hexadecimal.
        into: file to write; its directory must exist.
        max_bytes: largest accepted size of the file.
        timeout_s: seconds for the whole download, including all tries and redirects.
        stop: event that another thread sets to cancel the download.
        hosts: names or addresses of the servers that may be asked. If there are none, any server may be asked, but it
            may redirect only to itself.
        progress: called with the number of bytes received and the total, which is None if the server does not send it.

    Returns:
        ``into``.

    Raises:
        StoreError: the download failed, its server is not allowed, or the file is too large or has another hash.
    """
    sha256 = sha256.lower()
    shown = _shown(url)
    if not _SHA256.match(sha256):
        raise StoreError(f"{shown}: sha256: expected 64 hexadecimal digits")
    stop = threading.Event() if stop is None else stop
    try:
        with replacing(into) as file:
            allowed = frozenset(host.lower() for host in hosts) or {(_parts(url).hostname or "").lower()}
            download = _Download(file, max_bytes, time.monotonic() + timeout_s, allowed, stop, progress)
            _fetch(url, download, timeout_s)
            found = download.hash.hexdigest()
            if found != sha256:
                raise StoreError(f"{shown}: checksum mismatch: expected sha256 {sha256}, received {found}")
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
                    f"{_shown(url)}: not finished after {timeout_s:g} s ({download.size} bytes received); {error}"
                ) from None
            if tries >= _MAX_TRIES:
                raise StoreError(f"{_shown(url)}: {error}; tried {tries} times") from None
            download.stop.wait(min(_PAUSE_S * 2 ** (tries - 1), max(0.0, download.left_s)))
        else:
            return
        if download.stop.is_set():
            raise StoreError(f"{_shown(url)}: canceled, because the agent is stopping")


def _try(url: str, download: _Download) -> None:
    """Send one request, follow its redirects, and continue where the last try ended."""
    for _ in range(_MAX_REDIRECTS + 1):
        parts = _parts(url)
        if (parts.hostname or "").lower() not in download.hosts:
            raise StoreError(
                f"{_shown(url)}: its server is not one of {', '.join(sorted(download.hosts))}; add it to install.hosts "
                "in agent.yaml"
            )
        with _connected(parts, download) as connection:
            _ask(connection, parts, download)
            with connection.getresponse() as response:
                if response.status not in (301, 302, 303, 307, 308):
                    _receive(url, response, download)
                    return
                target = urljoin(url, response.headers.get("Location", ""))
        if parts.scheme == "https" and not target.lower().startswith("https:"):
            raise StoreError(f"{_shown(url)}: refusing to follow a redirect from https to {_shown(target)}")
        url = target
    raise StoreError(f"{_shown(url)}: more than {_MAX_REDIRECTS} redirects")


@contextmanager
def _connected(parts: SplitResult, download: _Download) -> Iterator[http.client.HTTPConnection]:
    """Open a connection. Close it when ``stop`` is set, or at the deadline even if data still arrives slowly."""
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=max(0.1, min(_SILENCE_S, download.left_s)))
    with _translated(parts):
        connection.connect()
    # `HTTPConnection` clears its attribute as soon as the response begins.
    sock, done = connection.sock, threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            if download.stop.is_set() or download.left_s <= 0:
                # Not SSLSocket.shutdown, which is not thread-safe: this call only ends the reading.
                with suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)

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
    """Turn an invalid certificate into StoreError, `_DiskError` into its OSError, other errors into `_DroppedError`."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise StoreError(f"{_shown(parts.geturl())}: its certificate is not valid: {error.verify_message}") from None
    except _DiskError as error:
        raise error.cause from None
    except (OSError, http.client.HTTPException) as error:
        raise _DroppedError(_describe(error)) from None


class _DiskError(Exception):
    """Wraps an OSError of the local disk, so that it is not treated as a network error."""

    def __init__(self, cause: OSError) -> None:
        self.cause = cause
        super().__init__()


def _ask(connection: http.client.HTTPConnection, parts: SplitResult, download: _Download) -> None:
    headers = {"User-Agent": f"edgeloop/{__version__}", "Accept-Encoding": "identity"}
    if parts.username is not None:  # not sent to the target of a redirect
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    if download.size:
        headers["Range"] = f"bytes={download.size}-"
        if download.tag is not None:
            headers["If-Range"] = download.tag
    path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    connection.request("GET", path, headers=headers)


def _receive(url: str, response: http.client.HTTPResponse, download: _Download) -> None:
    _check_response(url, response, download)
    tag = response.headers.get("ETag")
    if tag is not None or response.status == 200:
        download.tag = tag if tag and tag.startswith('"') else None  # a weak tag does not promise equal bytes
    total = None if response.length is None else download.size + response.length
    if total is not None and total > download.max_bytes:
        raise StoreError(f"{_shown(url)}: {total} bytes, at most {download.max_bytes} are allowed")
    while block := response.read1(_BLOCK):
        if download.size + len(block) > download.max_bytes:
            raise StoreError(f"{_shown(url)}: more than the {download.max_bytes} bytes allowed")
        try:
            download.file.write(block)
        except OSError as error:
            raise _DiskError(error) from error
        download.hash.update(block)
        download.size += len(block)
        download.progress(download.size, total)
        if download.stop.is_set() or download.left_s <= 0:
            raise _DroppedError("the transfer is too slow")
    if total is None and (download.stop.is_set() or download.left_s <= 0):
        raise _DroppedError("the transfer is too slow")  # we ended the connection, not the server
    if total is not None and download.size < total:
        raise _DroppedError(f"the connection was dropped after {download.size} of {total} bytes")


def _check_response(url: str, response: http.client.HTTPResponse, download: _Download) -> None:
    """Check that the response is the whole file or its missing part; restart the download if it is the whole file."""
    status = response.status
    if status in (408, 425, 429, 500, 502, 503, 504):
        raise _DroppedError(f"the server answered {status} {_plain(response.reason)}")
    if status == 416 and download.size:
        download.restart()
        raise _DroppedError("the file on the server is now smaller than the part already received")
    if status not in (200, 206):
        raise StoreError(f"{_shown(url)}: the server answered {status} {_plain(response.reason)}")
    if status == 206:
        found = _RANGE.match(response.headers.get("Content-Range", ""))
        if not download.size or found is None or int(found[1]) != download.size:
            download.restart()
            raise _DroppedError("the server sent another part than requested")
    elif download.size:
        download.restart()


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises ValueError if it is not a number
    except ValueError:
        # The URL itself is not shown: the invalid part may be the password.
        raise StoreError("the URL is not valid; expected one that begins with http:// or https://") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise StoreError(f"{_shown(url)}: expected a URL that begins with http:// or https://")
    if re.search(r"[^\x21-\x7e]", url):
        raise StoreError(f"{_shown(url)}: contains characters that must be written as %XX in a URL")
    return parts


def _shown(url: str) -> str:
    """Return a URL without its secrets: name and password, and the query, which may contain a token."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return "the URL"
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return _plain(f"{scheme[:10]}://{host.rpartition('@')[2]}{slash}{path}")


def _describe(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {_SILENCE_S:g} s"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection was dropped"
    return _plain(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def _plain(text: object) -> str:
    return "".join(char if char.isprintable() else "?" for char in str(text))[:200]
