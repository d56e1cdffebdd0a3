"""MJPEG from real HTTP servers, well-behaved and not."""

from __future__ import annotations

import base64
import hashlib
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import trustme

from edge_agent.cameras.frames import encoded
from edge_agent.cameras.http import HttpCamera
from edge_agent.config import CameraSettings, CameraTlsSettings
from edge_agent.errors import CameraError

IMAGES = [encoded(np.full((48, 64, 3), level, np.uint8)) for level in (20, 120, 220)]
Answer = Callable[[BaseHTTPRequestHandler], None]


def mjpeg(boundary: str = "frame", *, named: str | None = None, length: bool = True) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={named or boundary}")
        request.end_headers()
        for image in IMAGES:
            size = f"Content-Length: {len(image)}\r\n" if length else ""
            head = f"--{boundary}\r\nContent-Type: image/jpeg\r\n{size}\r\n"
            request.wfile.write(head.encode() + image + b"\r\n")
        request.wfile.write(f"--{boundary}--\r\n".encode())

    return answer


def sent(*lines: bytes, kind: str = "multipart/x-mixed-replace; boundary=frame", status: int = 200) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.end_headers()
        request.wfile.write(b"".join(lines))

    return answer


class Serve(Protocol):
    def __call__(self, answer: Answer, tls: ssl.SSLContext | None = None) -> int: ...


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Answer, tls: ssl.SSLContext | None = None) -> int:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with suppress(BrokenPipeError, ConnectionResetError):
                    answer(self)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server.server_port

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def frames(address: str, count: int = 3, **settings: Any) -> list[bytes]:
    with HttpCamera(CameraSettings(address, timeout_s=settings.pop("timeout_s", 3.0), **settings)) as camera:
        return [frame.jpeg() for frame in islice(camera, count)]


@pytest.mark.parametrize(
    ("boundary", "named"),
    [
        ("frame", None),
        ("frame", '"frame"'),
        ("frame", "--frame"),
        ("--x", "--x"),
        ("video boundary--", "--video boundary--"),  # D-Link, TRENDnet
    ],
)
def test_every_image_arrives_as_it_was_sent(serve: Serve, boundary: str, named: str | None) -> None:
    for length in (True, False):
        port = serve(mjpeg(boundary, named=named, length=length))
        assert frames(f"http://127.0.0.1:{port}/stream?x=1") == IMAGES


@pytest.mark.parametrize("kind", ["image/jpg", "image/pjpeg", "application/octet-stream", "", "text/plain"])
def test_an_image_is_known_by_its_first_bytes_whatever_its_type_says(serve: Serve, kind: str) -> None:
    port = serve(sent(IMAGES[0], kind=kind))
    assert frames(f"http://127.0.0.1:{port}/", 2, fps=100) == [IMAGES[0]] * 2
    port = serve(sent(b"no image", kind=kind))
    with pytest.raises(CameraError, match="something that is not a JPEG image"):
        frames(f"http://127.0.0.1:{port}/")


HASHES = {"MD5": hashlib.md5, "SHA-256": hashlib.sha256}


def digest_camera(algorithm: str, qop: str, seen: list[str], *, lasts: int = 100) -> Answer:
    """A camera that wants HTTP Digest; each nonce is good for so many requests."""
    name, is_session = algorithm.removesuffix("-sess"), algorithm.endswith("-sess")
    nonces: dict[str, int] = {}

    def hashed(*parts: str) -> str:
        return HASHES[name or "MD5"](":".join(parts).encode()).hexdigest()

    def answer(request: BaseHTTPRequestHandler) -> None:
        header = request.headers.get("Authorization", "")
        seen.append(header)
        told = dict(re.findall(r'(\w+)="?([^",]+)"?', header.removeprefix("Digest ")))
        nonce = told.get("nonce", "")
        secret = hashed("me", "a camera, here", "se@cret")
        if is_session:
            secret = hashed(secret, nonce, told.get("cnonce", ""))
        middle = [nonce, told.get("nc", ""), told.get("cnonce", ""), "auth"] if qop else [nonce]
        right = told.get("response") == hashed(secret, *middle, hashed("GET", request.path))
        fresh = nonce in nonces and nonces[nonce] < lasts
        if right and fresh and (not qop or int(told["nc"], 16) == nonces[nonce] + 1):
            nonces[nonce] += 1
            sent(IMAGES[0], kind="image/jpeg")(request)
            return
        nonces[f"n{len(nonces)}"] = 0
        request.send_response(401)
        more = f", algorithm={algorithm}" * bool(algorithm) + f', qop="{qop}"' * bool(qop)
        request.send_header("WWW-Authenticate", 'Basic realm="x"')
        request.send_header(
            "WWW-Authenticate", f'Digest realm="a camera, here", nonce="n{len(nonces) - 1}", opaque="o"{more}'
        )
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


@pytest.mark.parametrize("algorithm", ["", "MD5", "SHA-256", "MD5-sess"])
@pytest.mark.parametrize("qop", ["", "auth", "auth,auth-int"])
def test_a_camera_that_wants_digest_gets_it_and_never_the_password(serve: Serve, algorithm: str, qop: str) -> None:
    seen: list[str] = []
    if algorithm == "MD5-sess" and not qop:
        return  # RFC 2069 has no client nonce.
    port = serve(digest_camera(algorithm, qop, seen, lasts=2))
    # More requests than one nonce is good for.
    assert frames(f"http://me:se%40cret@127.0.0.1:{port}/a?b=c", 5, fps=100) == [IMAGES[0]] * 5
    assert not any(header.startswith("Basic") for header in seen)
    with pytest.raises(CameraError, match="refuses the user name or password"):
        frames(f"http://me:wrong@127.0.0.1:{port}/")


def test_a_kind_of_password_that_is_not_known_is_named(serve: Serve) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(401)
        request.send_header("WWW-Authenticate", "Negotiate")
        request.end_headers()

    port = serve(answer)
    with pytest.raises(CameraError, match="asks for an unknown kind of password: Negotiate"):
        frames(f"http://me:x@127.0.0.1:{port}/")


@pytest.mark.parametrize(
    ("head", "image"),
    [
        (b"content-LENGTH: 14\r\n", b"1\r\n--frame\r\n23"),  # of a known length: whatever is in it
        (b"Content-Length: many\r\n", b"1\r\n--frame2\r\n3"),  # a boundary is a whole line
        (b"", b"1\r\n--fram\r\n\r\n"),
    ],
)
def test_bytes_that_look_like_a_boundary_belong_to_the_image(serve: Serve, head: bytes, image: bytes) -> None:
    port = serve(sent(b"--frame\r\n", head, b"\r\n", image, b"\r\n--frame--\r\n"))
    assert frames(f"http://127.0.0.1:{port}/") == [image]


def test_frames_are_decoded_when_looked_at(serve: Serve) -> None:
    port = serve(mjpeg())
    with HttpCamera(CameraSettings(f"http://127.0.0.1:{port}/")) as camera:
        found = list(camera)
    assert [frame.seq for frame in found] == [0, 1, 2]
    assert [round(float(frame.full().mean()), -1) for frame in found] == [20, 120, 220]
    assert found[0].size == (48, 64)


def test_a_single_image_is_asked_for_again_and_again(serve: Serve) -> None:
    asked: list[str] = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        sent(IMAGES[len(asked) % 3], kind="image/jpeg")(request)

    port = serve(answer)
    assert frames(f"http://127.0.0.1:{port}/snapshot.jpg?channel=1", 3, fps=50) == [
        IMAGES[1],
        IMAGES[2],
        IMAGES[0],
    ]
    assert asked == ["/snapshot.jpg?channel=1"] * 3


def test_a_single_image_is_asked_for_as_often_as_was_said(serve: Serve) -> None:
    port = serve(sent(IMAGES[0], kind="image/jpeg"))
    with HttpCamera(CameraSettings(f"http://127.0.0.1:{port}/", fps=20)) as camera:
        times = [frame.captured_s for frame in islice(camera, 20)]
    # 19 pauses of a twentieth of a second: on a busy machine longer, but not one a second.
    assert 0.9 < times[-1] - times[0] < 12


def test_the_password_is_sent_and_never_shown(serve: Serve) -> None:
    expected = "Basic " + base64.b64encode(b"me:se@cret").decode()

    def answer(request: BaseHTTPRequestHandler) -> None:
        (mjpeg() if request.headers["Authorization"] == expected else sent(status=401))(request)

    port = serve(answer)
    assert frames(f"http://me:se%40cret@127.0.0.1:{port}/") == IMAGES
    with pytest.raises(CameraError, match="refuses the user name or password") as caught:
        frames(f"http://me:wrongsecret@127.0.0.1:{port}/")
    assert "wrongsecret" not in str(caught.value)


def redirect(to: str, status: int = 302) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Location", to)
        request.end_headers()

    return answer


def test_a_redirect_is_followed_without_taking_the_password_elsewhere(serve: Serve) -> None:
    seen: list[str | None] = []

    def other(request: BaseHTTPRequestHandler) -> None:
        seen.append(request.headers["Authorization"])
        mjpeg()(request)

    elsewhere = serve(other)
    port = serve(redirect(f"http://127.0.0.1:{elsewhere}/x"))
    assert frames(f"http://me:secret@127.0.0.1:{port}/") == IMAGES
    assert seen == [None]


def test_https_wants_a_good_certificate_and_is_never_left_for_http(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    safe, plain = serve(mjpeg(), tls), serve(mjpeg())
    with pytest.raises(CameraError, match="certificate"):
        frames(f"https://127.0.0.1:{safe}/")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    assert frames(f"https://127.0.0.1:{safe}/") == IMAGES
    assert frames(f"http://127.0.0.1:{serve(redirect(f'https://127.0.0.1:{safe}/'))}/") == IMAGES
    leaving = serve(redirect(f"http://127.0.0.1:{plain}/"), tls)
    with pytest.raises(CameraError, match="not safe"):
        frames(f"https://127.0.0.1:{leaving}/")


def test_a_cameras_own_certificate_is_accepted_by_its_authority_or_fingerprint(serve: Serve, tmp_path: Path) -> None:
    authority, other = trustme.CA(), trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate = authority.issue_cert("camera.example")
    certificate.configure_cert(tls)
    seen: list[str | None] = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        seen.append(request.headers["Authorization"])
        mjpeg()(request)

    address = f"https://me:secret@127.0.0.1:{serve(answer, tls)}/"
    own = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.cert_chain_pems[0].bytes().decode())).hexdigest()
    colons = ":".join(own[at : at + 2].upper() for at in range(0, 64, 2))
    for fingerprint in (own, colons):  # whatever name it is for, as most cameras' certificates have no true one
        assert frames(address, tls=CameraTlsSettings(fingerprint=fingerprint)) == IMAGES
    seen.clear()
    with pytest.raises(CameraError, match=f"has the fingerprint {own}, but agent.yaml expects {'0' * 64}"):
        frames(address, tls=CameraTlsSettings(fingerprint="0" * 64))
    for number, one in enumerate((authority, other)):
        one.cert_pem.write_to_path(tmp_path / f"{number}.pem")
        with pytest.raises(CameraError, match="its certificate is not valid") as caught:
            frames(
                address, tls=CameraTlsSettings(ca=str(tmp_path / f"{number}.pem"))
            )  # another name, another authority
        assert "secret" not in str(caught.value)
    assert not seen, "the password was sent to something unknown"
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    assert frames(address, tls=CameraTlsSettings(ca=str(tmp_path / "0.pem"))) == IMAGES


def test_a_response_that_drips_is_not_waited_for(serve: Serve) -> None:
    never = threading.Event()

    def dripping(request: BaseHTTPRequestHandler) -> None:
        for byte in b"HTTP/1.0 200 OK\r\nContent-Type: image/jpeg\r\n" + b"X-Long: x\r\n" * 1000:
            request.wfile.write(bytes([byte]))
            if never.wait(0.05):
                return

    port = serve(dripping)
    with pytest.raises(CameraError, match="cannot be reached: no answer within 1 s"):
        frames(f"http://127.0.0.1:{port}/", timeout_s=1)
    never.set()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_within_the_camera_keeps_the_password(serve: Serve, status: int) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        if request.path == "/":
            redirect("/cam", status)(request)
        else:
            (mjpeg() if request.headers["Authorization"] else sent(status=401))(request)

    port = serve(answer)
    assert frames(f"http://me:secret@127.0.0.1:{port}/") == IMAGES


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (redirect("/again"), "redirects more than 5 times"),
        (redirect("file:///etc/passwd"), "not safe"),
        (redirect("http://[nowhere/"), "an invalid address"),
        (sent(status=404), "answers 404"),
        (sent(b"<html>", kind="text/html"), "sends text/html; expected"),
        (sent(kind="multipart/x-mixed-replace"), "without a boundary"),
        (sent(b"--frame\r\nContent-Length: 99999999999\r\n\r\n"), "announces an image of 99999999999 bytes"),
        (sent(b"--frame\r\n" + b"x" * 5000), "header line of over 4096 bytes"),
        (sent(b"--frame\r\n" + b"a: b\r\n" * 100), "more than 64 header lines"),
        (sent(b"--frame\r\nContent-Length: 100\r\n\r\nshort"), "stopped delivering"),
        (sent(b"--frame\r\n\r\n" + b"x" * 40_000_000), "over 33554432 bytes"),
        (sent(b"no boundary at all"), "stopped delivering"),
        (sent(b"x" * 40_000_000, kind="image/jpeg"), "over 33554432 bytes"),
    ],
)
def test_what_is_no_camera_is_refused_with_its_reason(serve: Serve, answer: Answer, message: str) -> None:
    port = serve(answer)
    with pytest.raises(CameraError, match=message):
        frames(f"http://127.0.0.1:{port}/", timeout_s=20)


def test_a_camera_that_falls_silent_is_not_waited_for(serve: Serve) -> None:
    never = threading.Event()

    def silent(request: BaseHTTPRequestHandler) -> None:
        sent(b"--frame\r\nContent-Length: 3\r\n\r\nabc\r\n--frame\r\n")(request)
        never.wait(20)

    port = serve(silent)
    with HttpCamera(CameraSettings(f"http://127.0.0.1:{port}/", timeout_s=1)) as camera:
        frames = iter(camera)
        assert next(frames).jpeg() == b"abc"
        with pytest.raises(CameraError, match="stopped delivering: timed out"):
            next(frames)
    never.set()


@pytest.mark.parametrize("head", [b"", b"--frame\r\n\r\n"])
def test_what_sends_rubbish_without_end_is_left_in_time(serve: Serve, head: bytes) -> None:
    def rubbish(request: BaseHTTPRequestHandler) -> None:
        sent(head)(request)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            request.wfile.write(b"rubbish\r\n")
            time.sleep(0.01)

    port = serve(rubbish)
    with pytest.raises(CameraError, match="sent no image for 1 s"):
        frames(f"http://127.0.0.1:{port}/", timeout_s=1)


def test_a_camera_that_is_silent_or_not_there_is_not_waited_for(serve: Serve) -> None:
    never = threading.Event()

    def silent(_: BaseHTTPRequestHandler) -> None:
        never.wait(20)

    port = serve(silent)
    with pytest.raises(CameraError, match="cannot be reached: no answer within 1 s"):
        frames(f"http://127.0.0.1:{port}/", timeout_s=1)
    with pytest.raises(CameraError, match="cannot be reached: Connection refused"):
        frames("http://127.0.0.1:9/")
    never.set()
