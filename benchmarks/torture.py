"""Causes many kinds of failures around a running agent, and counts the events that are lost or delivered twice.

    python -m benchmarks.torture BUNDLE [--part 0.1]

One agent runs with an HTTP camera, recording and the dashboard. It is connected to a real Mosquitto through a proxy
that can cut connections. The benchmark takes about 20 minutes on two cores, prints the results and writes them to the
table in docs/reliability.md. With ``--part``, it causes only this share of the failures and does not change the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import paho.mqtt.client as paho
import yaml
from paho.mqtt.enums import CallbackAPIVersion

from edge_agent._version import __version__
from edge_agent.bundle import open_bundle
from edge_agent.cameras.frames import encoded
from edge_agent.errors import BundleError
from edge_agent.images import decode_image

TABLE = Path(__file__).parent.parent / "docs" / "reliability.md"
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
PATIENCE_S = 60.0


def free_port() -> int:
    """Return a port on the loopback interface that no program listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE_S) -> None:
    """Wait until ``condition`` returns True.

    Args:
        condition: function to call repeatedly.
        what: what is waited for, for the error message.
        seconds: maximum time to wait.

    Raises:
        TimeoutError: the time has passed.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.05)


class Camera:
    """An HTTP camera that serves JPEG images as an MJPEG stream.

    Attributes:
        turn_s: time in seconds after which the camera changes to the next image; None to serve only the first image.
        damage: whether to damage about half of the frames.
        damaged: number of frames that were damaged.
        port: port that the camera listens on.
    """

    def __init__(self, images: Sequence[bytes], seed: random.Random) -> None:
        self.turn_s: float | None = 1.0
        self.damaged = 0
        self.damage = False
        self._images, self._random = images, seed
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                with suppress(OSError):
                    while True:
                        data = camera.frame()
                        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                        self.wfile.write(head.encode() + data + b"\r\n")
                        time.sleep(0.05)

            def log_message(self, *_arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def frame(self) -> bytes:
        """Return the next frame as a JPEG, which may be damaged."""
        number = 0 if self.turn_s is None else int(time.monotonic() / self.turn_s) % len(self._images)
        data = self._images[number]
        if not self.damage or self._random.random() < 0.5:
            return data
        self.damaged += 1
        return mutated(data, self._random)


def mutated(data: bytes, seed: random.Random) -> bytes:
    """Return a copy of the data with some bytes changed. Some of the copies are also truncated or extended."""
    changed = bytearray(data)
    for _ in range(seed.choice((1, 1, 3, 30))):
        changed[seed.randrange(len(changed))] = seed.randrange(256)
    kind = seed.random()
    if kind < 0.2:
        del changed[seed.randrange(len(changed)) :]
    elif kind < 0.3:
        changed += seed.randbytes(seed.randrange(1, 5000))
    return bytes(changed)


class Broker:
    """A Mosquitto broker that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        (folder / "data").mkdir()
        self._settings = folder / "mosquitto.conf"
        self._settings.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\nuser root\nmax_queued_messages 0\n"
            f"persistence true\npersistence_location {folder / 'data'}/\n"
            "autosave_interval 1\nautosave_on_changes true\n"
        )
        self.start()

    def start(self) -> None:
        """Start the broker and wait until it listens."""
        program = shutil.which("mosquitto", path=PATH) or "mosquitto"
        self.process = subprocess.Popen(
            [program, "-c", str(self._settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(lambda: listens(self.port), "Mosquitto")

    def kill(self) -> None:
        """Kill the broker and wait until it has ended."""
        self.process.kill()
        self.process.wait()


def listens(port: int) -> bool:
    """Return whether a program listens on this port of the loopback interface."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Proxy:
    """Forwards connections to another port of the loopback interface. The connections can be cut."""

    def __init__(self, target: int) -> None:
        self._target, self._open = target, set[socket.socket]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> int:
        """Cut all connections. Return the number of connections that were open."""
        cut = list(self._open)
        for one in cut:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        return len(cut) // 2

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            try:
                server = socket.create_connection(("127.0.0.1", self._target), 5)
            except OSError:
                client.close()
                continue
            self._open |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for one in (source, sink):
            self._open.discard(one)
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class Receiver:
    """Subscribes to the agent's events and counts them.

    The broker keeps the session of this subscriber while it is not connected.

    Attributes:
        events: number of times that each event was received, by time of capture, sequence number and label.
    """

    def __init__(self, port: int) -> None:
        self.events: Counter[tuple[str, int, str]] = Counter()
        self._port = port
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id="receiver", clean_session=False)
        self._client.on_message = self._take
        self._client.on_connect = lambda client, *_: client.subscribe("edgeloop/torture/camera/+/event", 1)
        self._client.reconnect_delay_set(1, 1)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def _take(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        event = json.loads(message.payload)
        self.events[event["captured_at"], event["seq"], event["label"]] += 1

    @property
    def twice(self) -> int:
        """Number of deliveries in addition to the first delivery of each event."""
        return self.events.total() - len(self.events)


@dataclass
class Tortured:
    """The agent under test.

    Attributes:
        folder: working directory of the agent, with agent.yaml and agent.log.
        camera: the agent's camera.
        proxy: proxy between the agent and the broker.
        page: port of the dashboard.
        process: process of the agent; set by `start`.
    """

    folder: Path
    camera: Camera
    proxy: Proxy
    page: int
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        """Start the agent and wait until it classifies."""
        with (self.folder / "agent.log").open("ab") as log:
            command = [sys.executable, "-m", "edge_agent.cli", "run", "--config", str(self.folder / "agent.yaml")]
            self.process = subprocess.Popen(command, stderr=log, stdout=log)
        until(lambda: self.figure("edgeloop_frames_classified_total") > 0, "the first classified frame")

    def kill(self) -> None:
        """Kill the agent without warning, as a power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def figure(self, name: str) -> float:
        """Return the value of one of the dashboard's metrics, summed over its Prometheus labels.

        Return 0 if the dashboard does not answer.
        """
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.page}/metrics", timeout=10) as answer:
                text = answer.read().decode()
        except (OSError, urllib.error.URLError):
            return 0.0
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))

    def use(self) -> tuple[float, int, int]:
        """Return the agent's resident memory in MB, the number of its threads and the number of its open files."""
        proc = Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        return int(status["VmRSS"].split()[0]) / 1024, int(status["Threads"]), len(list((proc / "fd").iterdir()))

    def spooled(self) -> float:
        """Return the number of events that the agent has not yet delivered to the broker."""
        return self.figure("edgeloop_spool_depth")


@contextmanager
def tortured(bundle: Path, folder: Path, broker: Broker, seed: random.Random) -> Iterator[Tortured]:
    """Start an agent with its camera and proxy, and stop the agent when the context exits.

    Args:
        bundle: bundle that the agent runs. The camera serves two of its canary images, of different classes.
        folder: folder for the settings and the state of the agent.
        broker: broker that the agent is connected to through the proxy.
        seed: random number generator for damaged frames.
    """
    opened = open_bundle(bundle)
    labels: dict[str, bytes] = {}
    for image in opened.canary():
        frame = cv2.resize(decode_image(opened.read(image.file), image.file), (640, 480))
        labels.setdefault(image.label, encoded(np.asarray(frame, np.uint8)))
    camera, proxy, page = Camera(list(labels.values())[:2], seed), Proxy(broker.port), free_port()
    settings = {
        "device": "torture",
        "bundle": str(bundle.resolve()),
        "state": "state",
        "cameras": {"door": {"source": f"http://127.0.0.1:{camera.port}/"}},
        "mqtt": {"host": "127.0.0.1", "port": proxy.port},
        "decision": {"smoothing_s": 0.1, "min_time_s": 0.1, "enter": 0.3, "leave": 0.2},
        "record": {"max_mb": 20},
        "dashboard": {"port": page},
        "health_every_s": 2,
    }
    (folder / "agent.yaml").write_text(yaml.safe_dump(settings))
    agent = Tortured(folder, camera, proxy, page)
    agent.start()
    try:
        yield agent
    finally:
        agent.process.terminate()
        try:
            agent.process.wait(30)
        except subprocess.TimeoutExpired:
            agent.process.kill()


Rows = list[tuple[str, str]]


def commands(agent: Tortured, broker: Broker, count: int, seed: random.Random) -> Rows:
    """Send mutated commands to the agent, and check whether it still classifies."""
    good = [
        ("set", b'{"id": "1", "enter": 0.4, "smoothing_s": 0.1}'),
        ("snapshot", b'{"id": "2", "camera": "door"}'),
        ("activate", b'{"id": "3", "model": "ground"}'),
        ("rollback", b'{"id": "4", "reason": "x"}'),
        ("install", b'{"id": "5", "url": "http://127.0.0.1:9/x", "sha256": "' + b"0" * 64 + b'"}'),
    ]
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.max_inflight_messages_set(20)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    for number in range(count):
        verb, payload = seed.choice(good)
        sent = client.publish(f"edgeloop/torture/cmd/{verb}", mutated(payload, seed), qos=1)
        if number % 50 == 0:
            sent.wait_for_publish(PATIENCE_S)
    sent.wait_for_publish(PATIENCE_S)
    client.disconnect()
    client.loop_stop()
    return [(f"{count} mutated commands", still_there(agent))]


def slow_clients(agent: Tortured, count: int) -> Rows:
    """Open connections to the dashboard that send an incomplete header or nothing, and stay open.

    Measure the longest time that another visitor of the dashboard waits for an answer.
    """
    worst_s = 0.0
    with ExitStack() as stack:
        for number in range(count):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", agent.page), 10))
            with suppress(OSError):
                client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: "[: number % 45])
            if number % 10 == 0:
                began = time.monotonic()
                with urllib.request.urlopen(f"http://127.0.0.1:{agent.page}/healthz", timeout=30) as answer:
                    answer.read()
                worst_s = max(worst_s, time.monotonic() - began)
    return [(f"{count} slow clients of the dashboard", f"another visitor waits at most {1000 * worst_s:.0f} ms")]


def frames(agent: Tortured, count: int) -> Rows:
    """Damage frames of the HTTP camera, and check whether the agent still classifies."""
    agent.camera.damaged, agent.camera.damage = 0, True
    until(lambda: agent.camera.damaged >= count, "damaged frames", 20 + count)
    agent.camera.damage = False
    return [(f"{count} mutated frames of an HTTP camera", still_there(agent))]


def still_there(agent: Tortured) -> str:
    """Return a phrase for the table: whether the agent still classifies and its process has not ended."""
    before = agent.figure("edgeloop_frames_classified_total")
    try:
        until(lambda: agent.figure("edgeloop_frames_classified_total") > before, "a frame")
    except TimeoutError:
        return "it no longer classifies"
    return "it goes on" if agent.process.poll() is None else "it ended"


def bundles(bundle: Path, folder: Path, count: int, seed: random.Random) -> Rows:
    """Read mutated bundles. Count the bundles that are accepted, and errors other than `BundleError`."""
    data, accepted, other = bundle.read_bytes(), 0, 0
    path = folder / "mutated.edgeloop"
    for _ in range(count):
        changed = mutated(data, seed)
        path.write_bytes(changed)
        try:
            opened = open_bundle(path)
            for name in opened.manifest.files:
                opened.read(name)
            accepted += changed != data
        except BundleError:
            pass
        except Exception:  # noqa: BLE001  any other error is counted
            other += 1
    return [(f"{count} mutated bundles", f"{accepted} accepted, {other} other errors than a refusal")]


def cuts(agent: Tortured, receiver: Receiver, count: int, seconds: float) -> Rows:
    """Cut the connection to the broker again and again, until ``count`` were cut or ``seconds`` have passed."""
    before, decided = len(receiver.events), agent.figure("edgeloop_label_changes_total")
    twice, cut = receiver.twice, 0
    deadline = time.monotonic() + seconds
    while cut < count and time.monotonic() < deadline:
        cut += agent.proxy.cut()
        time.sleep(0.3)
    return [(f"{cut} cut connections to the broker", lost(agent, receiver, before, decided, twice))]


def broker_kills(agent: Tortured, broker: Broker, receiver: Receiver, count: int) -> Rows:
    """Kill the broker and start it again, ``count`` times."""
    before, decided, twice = len(receiver.events), agent.figure("edgeloop_label_changes_total"), receiver.twice
    for _ in range(count):
        broker.kill()
        time.sleep(0.5)
        broker.start()
        time.sleep(2.0)
    return [(f"broker killed {count} times", lost(agent, receiver, before, decided, twice))]


def lost(agent: Tortured, receiver: Receiver, before: int, decided: float, twice: int) -> str:
    """Wait until the agent has sent all events, and compare the decided events with the received ones.

    Args:
        agent: the agent.
        receiver: subscriber that counts the received events.
        before: number of different events that were received before the failures.
        decided: number of events that the agent had decided before the failures.
        twice: number of repeated deliveries before the failures.

    Returns:
        A phrase for the table.
    """
    agent.camera.turn_s = None
    time.sleep(3)
    with suppress(TimeoutError):
        until(lambda: agent.spooled() == 0, "an empty spool", 150)
    time.sleep(3)
    now_decided, arrived = agent.figure("edgeloop_label_changes_total") - decided, len(receiver.events) - before
    agent.camera.turn_s = 1.0
    return (
        f"{now_decided:.0f} events decided, {max(0, round(now_decided) - arrived)} lost, "
        f"{receiver.twice - twice} delivered twice"
    )


def kills(agent: Tortured, receiver: Receiver, count: int, seed: random.Random) -> Rows:
    """Kill and restart the agent ``count`` times, half of the times while labels change.

    The other half of the times, the image stays the same.
    """
    before, twice = len(receiver.events), receiver.twice
    decided = -agent.figure("edgeloop_label_changes_total")
    for _ in range(count // 2):
        time.sleep(seed.uniform(0.1, 1.5))
        decided += agent.figure("edgeloop_label_changes_total")
        agent.kill()
        agent.start()
    agent.camera.turn_s = None
    time.sleep(3)
    until(lambda: agent.spooled() == 0, "an empty spool", 150)
    time.sleep(2)
    arrived = len(receiver.events) - before
    changing = (
        f"{max(0, round(decided) - arrived)} of at least {decided:.0f} lost, {receiver.twice - twice} delivered twice"
    )
    before = receiver.events.total()
    for _ in range(count - count // 2):
        time.sleep(seed.uniform(0.1, 0.8))
        agent.kill()
        agent.start()
    time.sleep(3)
    repeated = receiver.events.total() - before
    agent.camera.turn_s = 1.0
    return [
        (f"agent killed {count // 2} times while labels change", changing),
        (f"agent killed {count - count // 2} times before an unchanged scene", f"{repeated} events repeated"),
    ]


def main() -> None:
    """Cause all kinds of failures in turn and print the results. After a complete run, also write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--part", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    seed = random.Random(arguments.seed)

    def some(count: int) -> int:
        return max(2, round(float(arguments.part) * count))

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        rows = bundles(arguments.bundle, folder, some(2000), seed)
        broker = Broker(folder)
        receiver = Receiver(broker.port)
        try:
            with tortured(arguments.bundle, folder, broker, seed) as agent:
                time.sleep(20)
                memory, threads, files = agent.use()
                rows += commands(agent, broker, some(10_000), seed)
                rows += slow_clients(agent, some(200))
                rows += frames(agent, some(1000))
                rows += cuts(agent, receiver, some(500), arguments.part * 240)
                rows += broker_kills(agent, broker, receiver, some(50))
                time.sleep(20)
                then = agent.use()
                rows += [
                    (
                        "memory of the agent through all of this",
                        f"{memory:.0f} MB, then {then[0]:.0f} MB ({then[0] / memory:.2f})",
                    ),
                    ("threads and open files", f"{threads} and {files}, then {then[1]} and {then[2]}"),
                ]
                rows += kills(agent, receiver, some(200), seed)
        finally:
            broker.process.terminate()
    minutes = (time.monotonic() - began) / 60
    for what, result in rows:
        print(f"{what}: {result}")
    if arguments.part == 1.0:
        write(rows, minutes)


def write(rows: Rows, minutes: float) -> None:
    """Replace the table in docs/reliability.md. ``minutes`` is the time that the benchmark took."""
    table = "\n".join(f"| {what} | {result} |" for what, result in rows)
    text = TABLE.read_text() if TABLE.exists() else ""
    start, end = "<!-- table -->\n", "<!-- end -->"
    machine = f"Python {platform.python_version()}, {platform.machine()} with {os.cpu_count()} cores"
    made = (
        f"edgeloop {__version__}, {time.strftime('%Y-%m-%d')}, {machine}, {minutes:.0f} minutes:\n\n"
        f"| harm | result |\n| --- | --- |\n{table}\n\n"
    )
    head, _, rest = text.partition(start)
    TABLE.write_text(f"{head}{start}{made}{end}{rest.partition(end)[2]}")


if __name__ == "__main__":
    main()
