"""The live page and its metrics, over real sockets."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from edge_agent.cameras import ArrayFrame
from edge_agent.config import DashboardSettings
from edge_agent.dashboard import Dashboard, dashboard
from edge_agent.dashboard.images import MIN_AGE_S
from edge_agent.dashboard.server import VIEWERS
from edge_agent.dashboard.state import BOUNDS_MS, EVENTS, LABELS, DashboardState
from edge_agent.errors import ImageError, MissingExtraError
from edge_agent.messages import (
    CameraHealth,
    CameraInfo,
    Health,
    Info,
    Latency,
    ModelId,
    Observation,
    Percentiles,
    SpoolHealth,
    Timing,
    TopScore,
    timestamp,
)
from edge_agent.preprocessing import Pixels
from edge_agent.web import protocol
from edge_agent.web.access import Access

from ...conftest import wait_until

MODEL = ModelId("ground", "1.2", "ab" * 32)


def info(*cameras: str) -> Info:
    names = {name: CameraInfo("/dev/video0") for name in cameras}
    return Info(
        1, "porch-pi", MODEL, ("brick", "stars"), names, 2, None, "ai-edge-litert 2.3.0", "0.1.0", "3.11.2", False
    )


def observation(label: str, score: float, camera: str = "feeder", age_ms: float = 21.0, seq: int = 0) -> Observation:
    top = (TopScore(label, score), TopScore("other", round(1 - score, 4)))
    timing = Timing(0.3, 5.2, age_ms)
    return Observation(1, "porch-pi", camera, seq, timestamp(time.time_ns()), label, score, top, MODEL, timing)


def health(camera: str, throttled: tuple[str, ...] = ()) -> Health:
    times = Percentiles(300, 5.1, 6.0, 7.5, 9.0)
    of_camera = CameraHealth("online", 30.0, 29.5, 15, 0, 1, 2)
    return Health(
        1, "porch-pi", timestamp(time.time_ns()), 3723.0, MODEL, 61.5, throttled, 0.8, 118.0, 2100.0, 9000.0,
        Latency(times, times, times), {camera: of_camera}, SpoolHealth(3, 7, True), None,
    )  # fmt: skip


@dataclass
class Count:
    """As the agent counts."""

    captured: int = 100
    classified: int = 90
    replaced: int = 8
    unchanged: int = 1
    damaged: int = 1
    reopened: int = 2


class Rig:
    """A page over one camera, whose image can be changed."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.frame: ArrayFrame | None = None
        self.levels: Pixels | None = None
        self.counts = {"feeder": Count()}
        self.page = Dashboard(
            DashboardSettings(port=port),
            "porch-pi",
            frame=lambda name: self.frame if name == "feeder" else None,
            prepared=lambda name: self.levels if name == "feeder" else None,
            region=lambda _name: (0.0, 0.0, 1.0, 1.0),
            counts=self.counts.get,
        )

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Serve the page."""
        with self.page:
            wait_until(lambda: not self.port_is_closed(), 20, "the page")
            yield

    def port_is_closed(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) != 0

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return response.status, response.headers, response.read()

    def state(self) -> dict[str, Any]:
        return dict(json.loads(self.get("/api/state")[2]))

    def stream(self) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request("GET", "/api/events")
        return connection, connection.getresponse()


@pytest.fixture
def rig(free_port: int) -> Iterator[Rig]:
    rig = Rig(free_port)
    with rig.shown():
        rig.page.info(info("feeder"))
        rig.page.camera("feeder", "online")
        yield rig


def next_event(response: http.client.HTTPResponse) -> tuple[str, dict[str, Any]]:
    lines = []
    while line := response.readline().decode().strip():
        lines.append(line)
    return lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))


def test_the_state_holds_what_was_published_and_the_stream_says_what_changed(rig: Rig) -> None:
    rig.page.label(observation("brick", 0.8))
    rig.page.event(observation("brick", 0.8))
    rig.page.health(health("feeder"))
    state = rig.state()
    assert state["device"] == "porch-pi"
    assert state["info"]["model"]["version"] == "1.2"
    assert state["health"]["spool"]["depth"] == 3
    assert [event["label"] for event in state["events"]] == ["brick"]
    camera = state["cameras"]["feeder"]
    assert camera["state"]["state"] == "online"
    assert camera["label"]["label"] == "brick"
    assert camera["region"] == [0.0, 0.0, 1.0, 1.0]
    assert [label for _, label, _ in camera["labels"]] == ["brick"]

    connection, response = rig.stream()
    with closing(connection):
        kind, news = next_event(response)
        assert (kind, news["cameras"]["feeder"]["label"]["label"]) == ("state", "brick")
        rig.page.result(observation("stars", 0.9))
        kind, news = next_event(response)
        assert kind == "changes"
        assert set(news) == {"now_s", "cameras"}
        assert news["cameras"]["feeder"]["result"]["label"] == "stars"
        assert news["cameras"]["feeder"]["score"] == 0  # what this frame says of brick, the decided label
        rig.page.camera("feeder", "lost")
        while "state" not in news["cameras"].get("feeder", {}):
            news = next_event(response)[1]
        assert news["cameras"]["feeder"]["state"]["state"] == "lost"
        assert news["cameras"]["feeder"]["labels"] == [[pytest.approx(news["now_s"], abs=2), None, 0]]


def test_the_past_is_bounded_and_sums_up_each_second() -> None:
    board = DashboardState("porch-pi")
    for number in range(1000):
        board.label(observation(str(number), 0.5))
        board.event(observation(str(number), 0.5))
        board.result(observation(str(number), 0.5, age_ms=999.0 - number))
    version, everything = board.since(0)
    assert len(everything["events"]) == EVENTS
    assert len(everything["cameras"]["feeder"]["labels"]) == LABELS
    wait_until(lambda: "cameras" in board.since(version)[1], 5, "the second to end")
    points = [
        *everything["cameras"]["feeder"].get("points", []),
        *board.since(version)[1]["cameras"]["feeder"]["points"],
    ]
    assert sum(point.results for point in points) == 1000
    assert max(point.age_most_ms for point in points) == 999
    assert {(point.score, point.preprocess_ms, point.inference_ms) for point in points} == {(0.5, 0.3, 5.2)}
    newest, nothing = board.since(board.since(0)[0])
    assert set(nothing) == {"now_s"}
    assert newest >= version


def test_images_are_the_newest_at_a_size_to_be_shown(rig: Rig, areas: dict[str, dict[str, Pixels]]) -> None:
    assert rig.get("/camera/feeder.jpg")[0] == rig.get("/camera/feeder/model.png")[0] == 204
    small = areas["brick"]["train"]
    image = cv2.resize(small, (1600, 900))
    rig.frame = ArrayFrame(image=np.asarray(image, np.uint8), seq=0)
    rig.levels = np.ascontiguousarray(small[:96, :64])
    status, headers, data = rig.get("/camera/feeder.jpg?123")
    assert (status, headers["content-type"], headers["cache-control"]) == (200, "image/jpeg", "no-store")
    shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert shown is not None
    assert shown.shape == (450, 800, 3)
    assert float(np.mean(cv2.absdiff(shown, cv2.resize(image, (800, 450), interpolation=cv2.INTER_AREA)))) < 5
    status, headers, data = rig.get("/camera/feeder/model.png")
    assert (status, headers["content-type"]) == (200, "image/png")
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(decoded, rig.levels)
    for name in ("nobody.jpg", "nobody/model.png", "../../etc/passwd.jpg", "..%2f..%2fetc%2fpasswd.jpg", "feeder"):
        assert rig.get(f"/camera/{name}")[0] == 404


def test_a_image_is_encoded_once_however_many_look_and_a_damaged_one_is_no_error(
    rig: Rig, areas: dict[str, dict[str, Pixels]]
) -> None:
    looked = []

    class Counting(ArrayFrame):
        def full(self) -> Pixels:
            looked.append(self)
            return self.image

    rig.frame = Counting(image=areas["brick"]["train"], seq=0)
    threads = [threading.Thread(target=rig.get, args=("/camera/feeder.jpg",)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(looked) == 2  # its size, and the image
    time.sleep(2 * MIN_AGE_S)
    assert rig.get("/camera/feeder.jpg")[0] == 200
    assert len(looked) == 2

    class Damaged(ArrayFrame):
        def full(self) -> Pixels:
            raise ImageError("cut off")

    rig.frame = Damaged(image=areas["brick"]["train"], seq=1)
    wait_until(lambda: rig.get("/camera/feeder.jpg")[0] == 204, 5, "the damaged image to be looked at")


def test_metrics_are_prometheus_text_whose_counters_only_grow(rig: Rig) -> None:
    hostile = 'a "quoted"\\ label\nof two lines'
    rig.page.label(observation(hostile, 0.7))
    rig.page.event(observation(hostile, 0.7))
    for age_ms in (1.0, 30.0, 30.0, 9999.0):
        rig.page.result(observation(hostile, 0.75, age_ms=age_ms))
    rig.page.health(health("feeder", throttled=("throttled",)))
    status, headers, text = rig.get("/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    assert all(name.startswith("edgeloop_") for name in families)
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families.values()
        for sample in family.samples
    }
    camera = ("camera", "feeder")
    for name, value in {"captured": 100, "classified": 90, "replaced": 8, "unchanged": 1, "damaged": 1}.items():
        assert families[f"edgeloop_frames_{name}"].type == "counter"
        assert samples[f"edgeloop_frames_{name}_total", camera] == value
    assert samples["edgeloop_label_score", camera, ("label", hostile)] == 0.75
    assert samples["edgeloop_label_changes_total", camera] == 1
    assert samples["edgeloop_camera_up", camera] == 1
    assert samples["edgeloop_temperature_celsius",] == 61.5
    assert samples["edgeloop_memory_bytes",] == 118e6
    assert samples["edgeloop_spool_depth",] == 3
    assert samples["edgeloop_spool_dropped_total",] == 7
    assert samples["edgeloop_throttled", ("flag", "throttled")] == 1
    assert samples["edgeloop_throttled", ("flag", "under_voltage")] == 0
    assert ("edgeloop_model_info", ("digest", MODEL.digest), ("name", "ground"), ("version", "1.2")) in samples
    assert families["edgeloop_latency_seconds"].type == "histogram"
    stage = ("stage", "capture_to_publish")
    buckets = {
        key[2][1]: value
        for key, value in samples.items()
        if str(key[0]).endswith("_bucket") and key[1] == camera and stage in key
    }
    assert len(buckets) == len(BOUNDS_MS) + 1
    assert (buckets["0.001"], buckets["0.02"], buckets["0.05"], buckets["5.0"], buckets["+Inf"]) == (1, 1, 3, 3, 4)
    assert samples["edgeloop_latency_seconds_count", camera, stage] == 4
    assert samples["edgeloop_latency_seconds_sum", camera, stage] == pytest.approx(10.06)
    rig.page.camera("feeder", "frozen")
    assert b'edgeloop_camera_up{camera="feeder"} 0.0' in rig.get("/metrics")[2]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost:80:80", ""])
def test_a_name_that_is_not_this_machines_gets_nothing(rig: Rig, host: str) -> None:
    for path in ("/", "/api/state", "/api/events", "/camera/feeder.jpg", "/metrics"):
        status, headers, body = rig.get(path, Host=host)
        assert (status, "access-control-allow-origin" in headers) == (421, False)
        assert b"porch-pi" not in body


def test_names_that_a_server_answers_to() -> None:
    own = socket.gethostname()
    here = Access(hosts=frozenset({"cam.example"}))
    network = Access(loopback=False, hosts=frozenset({"cam.example"}))
    for name in ("localhost", "LOCALHOST:1", "127.0.0.1:8080", "[::1]", "[::1]:8080", "cam.example", "Cam.Example:443"):
        assert here.allows_name(name)
        assert network.allows_name(name)
    for name in (own, f"{own.upper()}.local:8080", "192.168.1.5", "10.0.0.1:8080", "[fe80::1]:8080"):
        assert network.allows_name(name)
        assert not here.allows_name(name)
    for name in (
        "",
        "evil.example",
        "localhost:a",
        "a@localhost",
        "localhost.",
        f"{own}.evil.example",
        "cam.example.evil",
    ):
        assert not here.allows_name(name)
        assert not network.allows_name(name)


CROSS = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}
LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 200),  # no browser
        ({"Origin": "http://127.0.0.1:{port}"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200),
        (LINK, 200),
        (CROSS, 403),
        (CROSS | {"Sec-Fetch-Site": "same-site"}, 403),  # another port of this machine
        (LINK | {"Sec-Fetch-Dest": "iframe"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
    ],
)
def test_pages_of_other_sites_read_nothing(rig: Rig, headers: dict[str, str], expected: int) -> None:
    given = {name: value.format(port=rig.port) for name, value in headers.items()}
    for path in ("/api/state", "/camera/feeder.jpg", "/metrics"):
        assert rig.get(path, **given)[0] in (expected, expected + 4 if expected == 200 else expected)
    connection = http.client.HTTPConnection("127.0.0.1", rig.port, timeout=20)
    connection.request("GET", "/api/events", headers=given)
    with closing(connection):
        assert connection.getresponse().status == expected


def test_a_password_opens_the_page_to_those_who_have_it(free_port: int, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("sësame öpen\n")
    rig = Rig(free_port)
    rig.page._settings = DashboardSettings(port=free_port, password_file=str(tmp_path / "password"))

    def basic(login: str) -> str:
        return "Basic " + base64.b64encode(login.encode()).decode()

    with rig.shown():
        for path in ("/", "/api/state", "/api/events", "/camera/feeder.jpg", "/metrics", "/healthz"):
            status, headers, body = rig.get(path)
            assert (status, headers["www-authenticate"]) == (401, 'Basic realm="edgeloop", charset="UTF-8"')
            assert b"porch-pi" not in body
        for wrong in ("Basic", "Basic !", basic("sësame öpen"), basic("me:sesame open"), "Bearer x", basic("me:")):
            assert rig.get("/api/state", Authorization=wrong)[0] == 401
        assert rig.get("/api/state", Authorization=basic("anybody:sësame öpen"))[0] == 200
        status, headers, _ = rig.get("/camera/feeder.jpg?token=s%C3%ABsame%20%C3%B6pen")
        assert (status, headers["location"]) == (303, "./feeder.jpg")


def test_without_its_password_the_page_is_not_shown_until_there_is_one(
    free_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dashboard, "RETRY_S", 0.05)
    rig = Rig(free_port)
    rig.page._settings = DashboardSettings(port=free_port, password_file=str(tmp_path / "password"))
    with rig.page:
        wait_until(lambda: "the dashboard password cannot be read" in caplog.text, 20, "a message")
        (tmp_path / "password").write_text("short\n")
        wait_until(lambda: "less than 8 characters" in caplog.text, 20, "a message")
        assert rig.port_is_closed()
        (tmp_path / "password").write_text("long enough\n")
        wait_until(lambda: not rig.port_is_closed(), 20, "the page")


def test_only_reading_is_possible_and_every_answer_is_guarded(rig: Rig) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PROPFIND"):
        assert rig.get("/api/state", method)[0] == rig.get("/nowhere", method)[0] == 405
    for path, expected in {
        "/": 200,
        "/dashboard.js": 200,
        "/healthz": 200,
        "/nowhere": 404,
        "/static/../page.py": 404,
    }.items():
        status, headers, _ = rig.get(path)
        assert status == expected
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers
    for path in ("/", "/api/state", "/api/events", "/metrics", "/camera/feeder.jpg"):
        assert rig.get(path, "HEAD")[2] == b""


def test_more_viewers_than_there_is_room_for_are_refused_until_one_leaves(rig: Rig) -> None:
    streams = [rig.stream() for _ in range(VIEWERS)]
    assert {response.status for _, response in streams} == {200}
    assert rig.get("/api/events")[0] == 503
    assert rig.get("/api/state")[0] == 200
    connection, response = streams.pop()
    response.close()
    connection.close()
    wait_until(lambda: _admitted(rig), 10, "room for a viewer")
    for connection, response in streams:
        response.close()
        connection.close()


def _admitted(rig: Rig) -> bool:
    connection, response = rig.stream()
    status = response.status
    response.close()
    connection.close()
    return status == 200


def test_rubbish_and_idle_connections_take_nothing_from_others(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    for rubbish in (
        b"\0\xff" * 5000,
        b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000,
        b"GET http://[/ HTTP/1.1\r\nHost: a\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", rig.port), 10) as client:
            try:
                client.sendall(rubbish)
                assert b" 200 " not in client.recv(100)
            except ConnectionError:
                pass  # it hung up, which is as good
    assert not caplog.records


def test_200_slow_clients_keep_no_visitor_waiting(rig: Rig) -> None:
    with ExitStack() as stack:
        slow = []
        for number in range(200):
            slow.append(stack.enter_context(socket.create_connection(("127.0.0.1", rig.port), 10)))
            slow[-1].sendall(b"GET /api/state HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * (number % 50))
            if number % 20 == 0:
                assert rig.get("/healthz")[0] == 200
        assert rig.get("/healthz")[0] == 200
        slow[0].settimeout(5)  # sooner than those that ask nothing are given up
        with suppress(ConnectionResetError):
            assert slow[0].recv(1) == b"", "the oldest connection makes room"
        slow[-1].sendall(b"\r\n\r\n")
        assert slow[-1].recv(12) == b"HTTP/1.1 200"


def test_one_address_has_only_part_of_the_connections(monkeypatch: pytest.MonkeyPatch, rig: Rig) -> None:
    monkeypatch.setattr(protocol, "is_loopback", lambda peer: peer == "127.0.0.1")
    with ExitStack() as stack:

        def connected(address: str) -> socket.socket:
            client = socket.create_connection(("127.0.0.1", rig.port), 10, source_address=(address, 0))
            return stack.enter_context(client)

        others = connected("127.0.0.3")
        greedy = [connected("127.0.0.2") for _ in range(protocol.PER_PEER + 5)]
        for client in greedy[:5]:
            client.settimeout(5)  # sooner than those that ask nothing are given up
            with suppress(ConnectionResetError):
                assert client.recv(1) == b""
        for client in (others, greedy[5], greedy[-1]):
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.1 200"


def test_a_viewer_that_does_not_read_is_dropped(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "_STALLED_S", 0.5)
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", rig.port))
        slow.sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: rig.page._sources.viewers == 1, 20, "the viewer")

        def gone() -> bool:
            rig.page.label(observation("x" * 20_000, 0.5))
            rig.page.event(observation("x" * 20_000, 0.5))
            return rig.page._sources.viewers == 0

        wait_until(gone, 60, "the end of the viewer")
    assert rig.get("/healthz")[0] == 200


def _answers(rig: Rig) -> bool:
    try:
        return rig.get("/healthz")[0] == 200
    except (ConnectionError, http.client.HTTPException):
        return False


def test_a_viewer_that_does_not_read_holds_nobody_up_and_the_page_ends_all_the_same(free_port: int) -> None:
    rig = Rig(free_port)
    long_label = "x" * 20_000  # fills the pipe soon
    with rig.shown():
        rig.page.info(info("feeder"))
        with socket.socket() as slow, closing(rig.stream()[0]):
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(("127.0.0.1", free_port))
            slow.sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            longest = 0.0
            until = time.monotonic() + 3
            while time.monotonic() < until:
                before = time.monotonic()
                rig.page.label(observation(long_label, 0.5))
                rig.page.event(observation(long_label, 0.5))
                longest = max(longest, time.monotonic() - before)
                time.sleep(0.01)
            assert longest < 1
            rig.page.label(observation("brick", 0.9))
            assert rig.state()["cameras"]["feeder"]["label"]["label"] == "brick"
            before = time.monotonic()
            rig.page.__exit__()
            assert time.monotonic() - before < 2
            assert not any(thread.name == "dashboard" for thread in threading.enumerate())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", free_port), 1)


def test_a_viewer_that_reads_is_told_that_the_page_ends(rig: Rig) -> None:
    connection, response = rig.stream()
    with closing(connection):
        assert next_event(response)[0] == "state"
        rig.page.__exit__()
        assert response.read() == b""  # a whole answer: one broken off raises IncompleteRead
        rig.page.__enter__()


def test_a_port_that_is_taken_is_waited_for(
    free_port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dashboard, "RETRY_S", 0.05)
    rig = Rig(free_port)
    taken = socket.create_server(("127.0.0.1", free_port))
    expected = f"dashboard: cannot listen on 127.0.0.1:{free_port}: Address already in use"
    with rig.page:
        wait_until(lambda: f"{expected}; set another dashboard.port" in caplog.text, 20, "a message")
        time.sleep(0.5)
        assert caplog.text.count(expected) == 1
        taken.close()
        wait_until(lambda: not rig.port_is_closed(), 20, "the page")
        assert rig.get("/healthz")[0] == 503


def test_without_the_extra_importing_works_and_the_log_says_how_to_install_it(free_port: int) -> None:
    code = f"""
import logging
import sys
import time
from edge_agent.dashboard import Dashboard, dashboard
from edge_agent.config import DashboardSettings
loaded = {{"starlette", "uvicorn", "prometheus_client", "anyio"}}.intersection(sys.modules)
sys.modules["uvicorn"] = None
said = []
keep = logging.Handler()
keep.emit = said.append
logging.getLogger("edge_agent").addHandler(keep)
nothing = lambda name: None
with Dashboard(DashboardSettings(port={free_port}), "a", frame=nothing, prepared=nothing, region=nothing):
    while not said:
        time.sleep(0.01)
print(said[0].getMessage())
print(loaded)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = MissingExtraError("the dashboard", "review", "uvicorn")
    assert done.stdout == f"{expected}; trying again every 30 s\nset()\n"
