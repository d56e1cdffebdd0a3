"""Compares the throughput of `edgeloop serve` with 16 concurrent clients to that of the bare interpreter.

    python -m benchmarks.serve BUNDLE [--seconds 10] [--clients 16]

The service runs in a separate process, as users start it. All clients run in another process. Each client has a
persistent connection, over which it sends 640x480 JPEG photographs, each as soon as it has received the response to the
one before. Clients and service share the cores. Bare means `invoke` alone, with one thread and with one thread per
core.

A second measurement compares one `invoke` of a batch of images with one `invoke` per image.
"""

from __future__ import annotations

import argparse
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edge_agent.bundle import open_bundle
from edge_agent.bundle.archive import MODEL
from edge_agent.cameras.frames import encoded
from edge_agent.inference.interpreter import cores

from .support.figures import record
from .support.inputs import photographs

ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--against", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.against:
        rate, times = answered(arguments.against, arguments.clients, arguments.seconds)
        print(rate, statistics.median(times), np.percentile(times, 99))
        return
    model = open_bundle(arguments.bundle).read(MODEL)
    bare = {threads: bare_rate(model, threads) for threads in sorted({1, cores()})}
    command = [sys.executable, "-m", "edge_agent.cli", "serve", str(arguments.bundle), "--port", "0"]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as service,
    ):
        assert service.stdout is not None
        port = service.stdout.readline().split("/v1/classify")[0].rsplit(":", 1)[1]
        rounds = []
        for _ in range(ROUNDS):
            client = [sys.executable, "-m", "benchmarks.serve", str(arguments.bundle), "--against", port]
            client += ["--seconds", str(arguments.seconds / ROUNDS), "--clients", str(arguments.clients)]
            output = subprocess.run(client, check=True, capture_output=True, text=True).stdout
            rounds.append([float(word) for word in output.split()])
        service.terminate()
    after = {threads: bare_rate(model, threads) for threads in bare}
    rate, median, p99 = np.median(rounds, axis=0)
    record(f"{arguments.clients} clients, responses", rate, "/s")
    record(f"{arguments.clients} clients, response time, median", 1000 * median, "ms")
    record(f"{arguments.clients} clients, response time, p99", 1000 * p99, "ms")
    for threads, before in bare.items():
        both = (before + after[threads]) / 2
        record(f"bare invoke, {threads} thread(s)", both, "/s")
        record(f"responses over bare invoke with {threads} thread(s)", rate / both, at_least=0.8)
    batch(model)


def bare_rate(model: bytes, threads: int) -> float:
    interpreter = loaded(model, threads)
    for _ in range(100):
        interpreter.invoke()
    times = []
    for _ in range(300):
        start = time.perf_counter()
        interpreter.invoke()
        times.append(time.perf_counter() - start)
    return 1 / statistics.median(times)


def loaded(model: bytes, threads: int, batch: int = 1) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model, num_threads=threads)
    if batch > 1:
        details = interpreter.get_input_details()[0]
        interpreter.resize_tensor_input(details["index"], (batch, *details["shape"][1:]))
    interpreter.allocate_tensors()
    return interpreter


def batch(model: bytes, size: int = 8) -> None:
    one, many = loaded(model, 1), loaded(model, 1, size)
    times: dict[str, list[float]] = {"one by one": [], "at once": []}
    for _ in range(40):
        start = time.perf_counter()
        for _ in range(size):
            one.invoke()
        between = time.perf_counter()
        many.invoke()
        times["one by one"].append(between - start)
        times["at once"].append(time.perf_counter() - between)
    ratio = statistics.median(times["at once"]) / statistics.median(times["one by one"])
    record(f"{size} images in one invoke over {size} invokes, time", ratio)


def answered(port: int, clients: int, seconds: float) -> tuple[float, list[float]]:
    """Send requests from many clients. Return the number of responses per second and all response times in seconds."""
    requests = []
    for image in photographs():
        jpeg = encoded(np.asarray(cv2.resize(image, (640, 480)), np.uint8))
        head = f"POST /v1/classify HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-length: {len(jpeg)}\r\n\r\n"
        requests.append(head.encode() + jpeg)
    chosen = selectors.DefaultSelector()
    sent: dict[socket.socket, float] = {}
    turn = deque(requests)

    def send(connection: socket.socket) -> None:
        sent[connection] = time.perf_counter()
        connection.setblocking(True)
        connection.sendall(turn[0])
        connection.setblocking(False)
        turn.rotate()

    for _ in range(clients):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        chosen.register(connection, selectors.EVENT_READ)
        send(connection)
    # Do not count the responses of the first half second, because the service has to warm up.
    begin = time.perf_counter() + 0.5
    times: list[float] = []
    waiting: dict[socket.socket, bytes] = {}
    while (now := time.perf_counter()) < begin + seconds:
        for key, _ in chosen.select(1):
            asker = key.fileobj
            assert isinstance(asker, socket.socket)
            data = waiting.pop(asker, b"") + asker.recv(65536)
            if b"\r\n\r\n" not in data or not data.endswith(b"}"):
                waiting[asker] = data
                continue
            assert data.startswith(b"HTTP/1.1 200"), data
            if now >= begin:
                times.append(time.perf_counter() - sent[asker])
            send(asker)
    return len(times) / seconds, times


if __name__ == "__main__":
    main()
