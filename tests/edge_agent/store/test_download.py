"""Downloads from real servers that are slow, broken, hostile, or drop the line."""

from __future__ import annotations

import base64
import hashlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from edge_agent.errors import StoreError
from edge_agent.store.download import fetch

DATA = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(DATA).hexdigest()
Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def serving(answer: Answer, tls: ssl.SSLContext | None = None) -> Iterator[tuple[str, list[BaseHTTPRequestHandler]]]:
    """A web server on loopback, its address, and the requests it got."""
    seen: list[BaseHTTPRequestHandler] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.close_connection = True
            seen.append(self)
            with suppress(OSError):
                answer(self)

        def log_message(self, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *arguments: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def send(request: BaseHTTPRequestHandler, status: int, data: bytes = b"", **headers: str) -> None:
    request.send_response(status)
    for name, value in ({"Content_Length": str(len(data))} | headers).items():
        if value:
            request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(data)


def whole(request: BaseHTTPRequestHandler) -> None:
    send(request, 200, DATA)


def refused(url: str, into: Path, sha256: str = SHA256, **limits: object) -> str:
    """What is said, when nothing is left of it."""
    limits = {"timeout_s": 20.0} | limits
    with pytest.raises(StoreError) as caught:
        fetch(url, sha256, into, **limits)  # type: ignore[arg-type]
    assert list(into.parent.iterdir()) == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def into(tmp_path: Path) -> Path:
    (tmp_path / "incoming").mkdir()
    return tmp_path / "incoming" / "new.edgeloop"


def test_a_file_is_fetched_and_its_progress_told(into: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    with serving(whole) as (url, _):
        assert fetch(f"{url}/b.edgeloop?x=1", SHA256.upper(), into, progress=lambda *step: seen.append(step)) == into
    assert into.read_bytes() == DATA
    assert seen[-1] == (len(DATA), len(DATA))
    assert list(into.parent.iterdir()) == [into]


def test_a_server_that_names_no_size_or_sends_in_chunks_will_do(into: Path) -> None:
    def unnamed(request: BaseHTTPRequestHandler) -> None:
        send(request, 200, DATA, Content_Length="")

    def chunks(request: BaseHTTPRequestHandler) -> None:
        send(request, 200, b"", Content_Length="", Transfer_Encoding="chunked")
        for start in range(0, len(DATA), 100_000):
            part = DATA[start : start + 100_000]
            request.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        request.wfile.write(b"0\r\n\r\n")

    for answer in (unnamed, chunks):
        with serving(answer) as (url, _):
            assert fetch(url, SHA256, into).read_bytes() == DATA


def test_another_file_than_asked_for_never_has_the_final_name(into: Path) -> None:
    with serving(whole) as (url, _):
        assert "checksum mismatch" in refused(url, into, "0" * 64)
        assert "expected 64 hexadecimal digits" in refused(url, into, "0" * 63)


def test_an_older_file_stays_when_the_new_one_does_not_come(into: Path) -> None:
    into.write_bytes(b"old")
    with serving(whole) as (url, _), pytest.raises(StoreError):
        fetch(url, "0" * 64, into)
    assert into.read_bytes() == b"old"


@pytest.mark.parametrize("ranges", [True, False])
def test_a_dropped_line_is_taken_up_where_it_broke(into: Path, *, ranges: bool) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        start = int(asked[6:-1]) if asked and ranges else 0
        if start:
            assert request.headers["If-Range"] == '"one"'
            span = f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"
            send(request, 206, DATA[start : start + 200_000], Content_Length=str(len(DATA) - start), Content_Range=span)
        else:
            cut = 200_000 if len(requests) == 1 else len(DATA)
            send(request, 200, DATA[:cut], Content_Length=str(len(DATA)), ETag='"one"')

    with serving(answer) as (url, requests):
        assert fetch(url, SHA256, into).read_bytes() == DATA
        ranges_asked = [request.headers.get("Range") for request in requests]
    assert ranges_asked == [None, "bytes=200000-", *(["bytes=400000-"] if ranges else [])]


def test_a_server_that_answers_with_another_part_is_asked_for_the_whole(into: Path) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        if len(requests) == 1:
            send(request, 200, DATA[:1000], Content_Length=str(len(DATA)))
        elif len(requests) == 2:
            send(request, 206, DATA[:5], Content_Range=f"bytes 0-4/{len(DATA)}")
        elif len(requests) == 3:
            assert request.headers.get("Range") is None
            send(request, 200, DATA)

    with serving(answer) as (url, requests):
        assert fetch(url, SHA256, into).read_bytes() == DATA


def test_a_server_that_is_busy_is_asked_again_and_one_that_refuses_is_not(into: Path) -> None:
    def busy(request: BaseHTTPRequestHandler) -> None:
        send(request, 503) if len(requests) < 2 else whole(request)

    with serving(busy) as (url, requests):
        assert fetch(url, SHA256, into).read_bytes() == DATA
    into.unlink()
    with serving(lambda request: send(request, 404)) as (url, requests):
        assert "answered 404 Not Found" in refused(url, into)
        assert len(requests) == 1


def test_nobody_there_is_said_after_some_tries(into: Path, free_port: int) -> None:
    said = refused(f"http://127.0.0.1:{free_port}/x", into, timeout_s=1.0)
    assert "Connection refused" in said
    assert "not finished after 1 s" in said


def test_too_much_is_refused_before_and_while_it_comes(into: Path) -> None:
    def endless(request: BaseHTTPRequestHandler) -> None:
        send(request, 200, b"", Content_Length="")
        while True:
            request.wfile.write(bytes(65536))

    with serving(whole) as (url, _):
        assert "at most 1000 are allowed" in refused(url, into, max_bytes=1000)
    with serving(endless) as (url, _):
        assert "more than the 500000 bytes allowed" in refused(url, into, max_bytes=500_000)


@pytest.mark.parametrize("part", ["status", "headers", "body"])
def test_bytes_that_drip_do_not_hold_it_longer_than_allowed(into: Path, part: str) -> None:
    def drip(request: BaseHTTPRequestHandler) -> None:
        if part == "headers":
            request.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        elif part == "body":
            send(request, 200, Content_Length=str(len(DATA)))
        while True:
            request.wfile.write(b"H")
            time.sleep(0.05)

    start = time.monotonic()
    with serving(drip) as (url, _):
        assert "not finished after 1 s" in refused(url, into, timeout_s=1.0)
    assert time.monotonic() - start < 60


def test_it_stops_when_asked_to_however_quiet_the_line(into: Path) -> None:
    stop, over = threading.Event(), threading.Event()

    def silent(_request: BaseHTTPRequestHandler) -> None:
        over.wait(200)

    with serving(silent) as (url, _):
        threading.Timer(0.3, stop.set).start()
        start = time.monotonic()
        assert "canceled" in refused(url, into, stop=stop, timeout_s=180.0)
        assert time.monotonic() - start < 60
        over.set()


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "/etc/passwd",
        "data:,x",
        "http://",
        "http:///x",
        "http://127.0.0.1:99999/",
        "http://[::1/x",
        "http://127.0.0.1/a b",
        "http://127.0.0.1/\r\nX: y",
        "http://127.0.0.1/ä",
        "",
    ],
)
def test_only_web_addresses_are_taken(into: Path, url: str) -> None:
    assert "expected one that begins with" in refused(url, into) or "http:" in refused(url, into)


def test_redirects_are_followed_a_few_times_and_never_to_a_file(into: Path) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        if request.path == "/a":
            send(request, 302, Location="/b")
        elif request.path == "/b":
            send(request, 200, DATA)
        elif request.path == "/file":
            send(request, 302, Location="file:///etc/passwd")
        elif request.path == "/none":
            send(request, 302)
        else:
            send(request, 301, Location=request.path)

    with serving(answer) as (url, requests):
        assert fetch(f"{url}/a", SHA256, into).read_bytes() == DATA
        into.unlink()
        assert "begins with http:// or https://" in refused(f"{url}/file", into)
        before = len(requests)
        assert "more than 5 redirects" in refused(f"{url}/loop", into)
        assert "more than 5 redirects" in refused(f"{url}/none", into)
        assert len(requests) - before == 12


def test_a_password_goes_where_it_was_meant_to_and_nowhere_else(into: Path) -> None:
    with serving(whole) as (other, elsewhere):

        def answer(request: BaseHTTPRequestHandler) -> None:
            send(request, 302, Location=other + "/x") if "/away" in request.path else whole(request)

        with serving(answer) as (url, requests):
            mine = url.replace("://", "://me:pa%20ss@")
            fetch(f"{mine}/here?token=geheim", SHA256, into)
            expected = f"Basic {base64.b64encode(b'me:pa ss').decode()}"
            assert requests[-1].headers["Authorization"] == expected
            into.unlink()
            said = refused(f"{mine}/away?token=geheim", into, "0" * 64)
            assert requests[-1].headers["Authorization"] == expected
            assert elsewhere[-1].headers["Authorization"] is None
    said += refused("http://me:pa/ss@127.0.0.1/x", into)
    said += refused("ftp://me:pass@127.0.0.1/x", into)
    for secret in ("pa%20", "ss@", "geheim", "me:"):
        assert secret not in said


def test_a_redirect_leads_only_to_servers_that_are_allowed(into: Path) -> None:
    with serving(whole) as (other, elsewhere):
        there = other.replace("127.0.0.1", "localhost")

        with serving(lambda request: send(request, 302, Location=f"{there}/x")) as (url, _):
            said = refused(f"{url}/a", into)
            assert f"{there}/x: its server is not one of 127.0.0.1; add it to install.hosts" in said
            with pytest.raises(StoreError, match="its server is not one of localhost"):
                fetch(f"{url}/a", SHA256, into, hosts=["localhost"])
            assert elsewhere == []
            assert fetch(f"{url}/a", SHA256, into, hosts=["127.0.0.1", "LocalHost"]).read_bytes() == DATA


def contexts(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return server, tmp_path / "ca.pem"


def test_https_wants_a_good_certificate_and_is_never_left_for_http(
    into: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, authority = contexts(tmp_path)
    with serving(whole) as (plain, requests):

        def answer(request: BaseHTTPRequestHandler) -> None:
            send(request, 302, Location=plain) if request.path == "/away" else whole(request)

        with serving(answer, server) as (url, _):
            assert "its certificate is not valid" in refused(url, into)
            monkeypatch.setenv("SSL_CERT_FILE", str(authority))
            assert fetch(url, SHA256, into).read_bytes() == DATA
            into.unlink()
            assert "a redirect from https to http" in refused(f"{url}/away", into)
        assert requests == []


def test_a_handshake_that_never_ends_is_given_up(into: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        start = time.monotonic()
        assert "not finished after 1 s" in refused(f"https://127.0.0.1:{server.getsockname()[1]}/", into, timeout_s=1.0)
        assert time.monotonic() - start < 60


def test_a_directory_that_is_not_there_is_said(tmp_path: Path) -> None:
    with serving(whole) as (url, _), pytest.raises(StoreError, match="cannot be written to: No such file"):
        fetch(url, SHA256, tmp_path / "none" / "x")
