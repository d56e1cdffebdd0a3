"""`edgeloop serve`: a real service, real clients, and everything its own description lets a client send."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import Request

import edge_agent
from edge_agent.bundle import open_bundle
from edge_agent.images import read_image
from edge_agent.serve import workers
from edge_agent.serve.api import Service as Api

from ...conftest import Run
from ...support.processes import interruptible


@dataclass
class Service:
    """A service in a process of its own."""

    port: int
    process: subprocess.Popen[str]

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            data = response.read()
            kind = response.headers.get("content-type", "")
            return response.status, json.loads(data) if kind.startswith("application/json") else data.decode()


# What libjpeg itself says of images that tests have damaged.
LIBJPEG = ("Corrupt JPEG data: ", "Premature end of JPEG file")


@contextmanager
def serving(bundle: Path, *arguments: str) -> Iterator[tuple[Service, list[str]]]:
    """The service, and what it printed; it ends well when it is told to, and complains of nothing."""
    command = [sys.executable, "-m", "edge_agent.cli", "serve", str(bundle), "--port", "0", *arguments]
    with subprocess.Popen(interruptible(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = [process.stdout.readline()]
        try:
            if "0.0.0.0" in arguments and "--token-file" not in arguments:
                said.append(process.stdout.readline())
            port = int(said[0].split("/v1/classify")[0].rsplit(":", 1)[1])
            yield Service(port, process), said
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            said_too = [line for line in process.stderr.read().splitlines() if not line.startswith(LIBJPEG)]
            assert said_too == []
        finally:
            process.kill()


@pytest.fixture(scope="module")
def service(bundle_file: Path) -> Iterator[Service]:
    with serving(bundle_file) as (started, _):
        yield started


@pytest.fixture(scope="module")
def description(service: Service) -> dict[str, Any]:
    return dict(service.ask("GET", "/openapi.json")[1])


def image(photo_folder: Path, name: str = "stars/03.jpg") -> bytes:
    return (photo_folder / name).read_bytes()


def test_the_service_says_what_the_classifier_says(
    service: Service, photo_folder: Path, classifier: edge_agent.Classifier
) -> None:
    threshold = service.ask("GET", "/v1/model")[1]["threshold"]
    for path in sorted(photo_folder.rglob("*.jpg"))[::7]:
        status, told = service.ask("POST", "/v1/classify?top=3", path.read_bytes(), **{"content-type": "image/jpeg"})
        expected = classifier.classify(read_image(path)).top(3)
        assert status == 200
        assert [(one["label"], one["score"]) for one in told["top"]] == [
            (label, pytest.approx(score, abs=1e-6)) for label, score in expected
        ]
        assert told["label"] == (expected[0][0] if expected[0][1] >= threshold else "unknown")
    png = cv2.imencode(".png", read_image(path))[1].tobytes()
    assert service.ask("POST", "/v1/classify", png)[1]["top"][0]["label"] == expected[0][0]


def test_a_model_of_two_classes_answers_plain_requests(bundle_file: Path, photo_folder: Path) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": image(photo_folder)}

    async def ask() -> Any:
        with workers.Workers(open_bundle(bundle_file), count=1) as at_work:
            api = Api(open_bundle(bundle_file), at_work)
            api._most = 2  # as of a model with two classes
            scope = {"type": "http", "method": "POST", "query_string": b"", "headers": []}
            return await api.classify(Request(scope, receive))

    answer = asyncio.run(ask())
    assert (answer.status_code, len(json.loads(answer.body)["top"])) == (200, 2)


def test_the_model_and_the_description_are_told(service: Service, description: dict[str, Any]) -> None:
    status, about = service.ask("GET", "/v1/model")
    assert (status, about["labels"], about["model"]["name"]) == (200, ["brick", "grass", "stars"], "ground")
    assert service.ask("GET", "/healthz") == (200, {"status": "ok"})
    assert description["openapi"] == "3.1.0"
    assert set(description["paths"]) == {"/v1/classify", "/v1/model", "/healthz"}
    schema = {**description["components"]["schemas"]["About"], "components": description["components"]}
    jsonschema.validate(about, schema)


def answers(description: dict[str, Any], path: str, method: str, status: int) -> Any:
    """The schema that the description promises for an answer."""
    promised = description["paths"][path][method]["responses"]
    assert str(status) in promised, f"{status} is not described"
    schema = promised[str(status)]["content"]["application/json"]["schema"]
    return {**schema, "components": description["components"]}


HEADS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"BM")
HOSTILE = st.one_of(
    st.binary(max_size=2000),
    st.builds(lambda head, rest: head + rest, st.sampled_from(HEADS), st.binary(max_size=500)),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_nothing_that_the_description_allows_stops_the_service(
    data: st.DataObject, service: Service, description: dict[str, Any], photo_folder: Path
) -> None:
    path = data.draw(st.sampled_from(sorted(description["paths"])))
    method = data.draw(st.sampled_from(sorted(description["paths"][path])))
    operation = description["paths"][path][method]
    query, body, headers = "", None, {}
    for parameter in operation.get("parameters", ()):
        schema = parameter["schema"]
        value = data.draw(st.one_of(st.integers(schema["minimum"], schema["maximum"]), st.integers(), st.text()))
        query = f"?{parameter['name']}={json.dumps(value) if isinstance(value, int) else http_quoted(value)}"
    if "requestBody" in operation:
        headers["content-type"] = data.draw(st.sampled_from(sorted(operation["requestBody"]["content"])))
        whole = image(photo_folder)
        cut = data.draw(st.integers(0, len(whole)))
        flipped = bytearray(whole)
        flipped[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
        body = data.draw(st.one_of(HOSTILE, st.sampled_from([whole, whole[:cut], bytes(flipped)])))
    status, told = service.ask(method.upper(), path + query, body, **headers)
    jsonschema.validate(told, answers(description, path, method, status))
    assert service.process.poll() is None


def http_quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="")


def test_what_is_too_large_or_no_image_is_refused_in_words(service: Service, photo_folder: Path) -> None:
    jpeg = image(photo_folder)
    huge = cv2.imencode(".png", np.zeros((20, 20, 3), np.uint8))[1].tobytes()
    header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + huge[24:29]
    huge = huge[:12] + header + zlib.crc32(header).to_bytes(4, "big") + huge[33:]
    for body, status, said in (
        (b"", 422, "not a complete"),
        (jpeg[: len(jpeg) // 2][:200], 422, "image"),
        (huge, 422, "megapixels"),
        (b"\xff" * (16 * 2**20 + 1), 413, "more than 16777216 bytes"),
    ):
        found, told = service.ask("POST", "/v1/classify", body)
        assert (found, said in told["error"]) == (status, True), told
    for kind in ("multipart/form-data; boundary=x", "application/json", "text/plain"):
        status, told = service.ask("POST", "/v1/classify", jpeg, **{"content-type": kind})
        assert (status, "expected the image file itself as the request body" in told["error"]) == (415, True)
    for kind in ("image/jpeg", "IMAGE/PNG", "application/octet-stream", "application/x-www-form-urlencoded"):
        assert service.ask("POST", "/v1/classify", jpeg, **{"content-type": kind})[0] == 200
    assert service.ask("POST", "/v1/classify?top=0", jpeg)[0] == 400
    assert service.ask("GET", "/v1/classify")[0] == 405
    assert service.ask("GET", "/nothing") == (404, {"error": "Not Found"})
    assert service.ask("POST", "/v1/classify", jpeg, host="evil.example")[0] == 421
    assert service.ask("POST", "/v1/classify", jpeg, origin="http://evil.example")[0] == 403


def test_clients_that_stall_or_leave_keep_nobody_waiting(service: Service, photo_folder: Path) -> None:
    jpeg = image(photo_folder)
    head = f"POST /v1/classify HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(jpeg)}\r\n\r\n".encode()
    stalled = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(20)]
    for number, connection in enumerate(stalled):
        connection.sendall(head + jpeg[: 10 * number])
        if number % 2:
            connection.close()
    gone = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(20)]
    for connection in gone:
        connection.sendall(head + jpeg)
        connection.close()
    assert service.ask("POST", "/v1/classify", jpeg)[0] == 200
    for connection in stalled:
        connection.close()


def test_many_clients_at_once_get_their_own_answers(
    service: Service, photo_folder: Path, classifier: edge_agent.Classifier
) -> None:
    paths = sorted(photo_folder.rglob("*.jpg"))[:48]
    expected = [classifier.classify(read_image(path)).best[0] for path in paths]
    found: dict[int, str] = {}

    def client(first: int) -> None:
        for place in range(first, len(paths), 16):
            status, told = service.ask("POST", "/v1/classify", paths[place].read_bytes())
            found[place] = told["top"][0]["label"] if status == 200 else str(status)

    threads = [threading.Thread(target=client, args=(first,)) for first in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[place] for place in range(len(paths))] == expected


def test_images_that_would_wait_too_long_are_refused_at_once(
    bundle_file: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "MOST_WAITING", 0)

    async def ask() -> None:
        with workers.Workers(open_bundle(bundle_file), count=1) as at_work, pytest.raises(workers.BusyError):
            await at_work.classify(image(photo_folder))

    asyncio.run(ask())


def memory(process: subprocess.Popen[str], field: str) -> int:
    """Bytes of resident memory: now (VmRSS) or at most until now (VmHWM)."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def test_large_images_are_decoded_within_a_budget(bundle_file: Path) -> None:
    large = cv2.imencode(".jpg", np.full((5400, 5400, 3), 90, np.uint8))[1].tobytes()  # 175 MB each while decoded
    with serving(bundle_file, "--workers", "4") as (service, _):
        assert service.ask("POST", "/v1/classify", large)[0] == 200
        before = memory(service.process, "VmHWM")
        found: list[int] = []

        def client() -> None:
            found.append(service.ask("POST", "/v1/classify", large)[0])

        threads = [threading.Thread(target=client) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [200] * 12
        assert memory(service.process, "VmHWM") - before < 200e6  # four at once would take 500 MB more


def test_images_that_arrive_at_once_are_held_within_a_budget(service: Service, photo_folder: Path) -> None:
    head = b"POST /v1/classify HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 16777216\r\n\r\n"
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", service.port), 30)) for _ in range(6)]
        said = []
        for client in clients:
            with suppress(ConnectionError):
                client.sendall(head + bytes(15 * 2**20))
        for client in clients[4:]:
            with suppress(ConnectionError):
                said.append(client.recv(12))
        assert b"HTTP/1.1 503" in said
    for _ in range(100):  # until the others are gone
        status, _told = service.ask("POST", "/v1/classify", image(photo_folder))
        if status == 200:
            break
        time.sleep(0.1)
    assert status == 200


def test_an_answer_that_nobody_waits_for_any_more_disturbs_nobody(bundle_file: Path, photo_folder: Path) -> None:
    complaints: list[object] = []

    async def ask() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
        with workers.Workers(open_bundle(bundle_file), count=1) as at_work:
            gone = asyncio.create_task(at_work.classify(image(photo_folder)))
            await asyncio.sleep(0)
            gone.cancel()
            assert (await at_work.classify(image(photo_folder))).best[0] == "stars"

    asyncio.run(ask())
    assert not complaints


def test_beyond_this_machine_clients_need_the_token(bundle_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    jpeg = image(photo_folder)
    with serving(bundle_file, "--host", "0.0.0.0") as (service, said):
        token = said[1].split()[-1]
        assert service.ask("GET", "/healthz")[0] == 401
        assert service.ask("GET", "/healthz", authorization="Bearer nonsense")[0] == 401
        assert service.ask("POST", "/v1/classify", jpeg, authorization=f"Bearer {token}")[0] == 200
    (tmp_path / "token").write_text("a-token-of-our-own\n")
    with serving(bundle_file, "--host", "0.0.0.0", "--token-file", str(tmp_path / "token")) as (service, said):
        assert "a-token-of-our-own" not in "".join(said)
        assert service.ask("GET", "/healthz", authorization="Bearer a-token-of-our-own")[0] == 200


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{tmp}/none.edgeloop"], "none.edgeloop"),
        (["{bundle}", "--token-file", "{tmp}/none"], "--token-file"),
        (["{bundle}", "--delegate", "/nowhere.so"], "nowhere.so"),
        (["{bundle}", "--port", "{taken}"], "Address already in use"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(
    bundle_file: Path, tmp_path: Path, edgeloop: Run, arguments: list[str], said: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {"tmp": tmp_path, "bundle": bundle_file, "taken": taken.getsockname()[1]}
        done = edgeloop("serve", *(argument.format(**names) for argument in arguments))
    assert done.code in (1, 2)
    assert said in done.err
    assert len(done.err.splitlines()) == 1
