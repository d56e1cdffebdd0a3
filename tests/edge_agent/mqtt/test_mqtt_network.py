"""Networks as they are: slow, refusing, cut, and half open; between the publisher and a real Mosquitto."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from edge_agent.config import MqttSettings
from edge_agent.messages import ModelId, Observation, Timing
from edge_agent.mqtt import MqttPublisher

from ...conftest import Mosquitto, Subscriber, wait_until

pytestmark = pytest.mark.needs("mosquitto")


class Proxy:
    """Passes bytes between an agent and its broker, as the present `mood` has it."""

    def __init__(self, port: int) -> None:
        self.mood = "well"
        """``well``, ``slow`` (4 KB/s), ``swallowing`` (takes all and passes nothing on), or ``refusing``."""
        self._target = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._open: list[socket.socket] = []
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                self.connections += 1
                if self.mood == "refusing":
                    client.close()
                    continue
                broker = socket.create_connection(("127.0.0.1", self._target))
                self._open += [client, broker]
                for source, sink in ((client, broker), (broker, client)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(400 if self.mood == "slow" else 4096):
                if self.mood == "slow":
                    time.sleep(0.1)
                if self.mood != "swallowing":
                    sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Drop every connection, in the middle of whatever it was saying."""
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open.clear()

    def close(self) -> None:
        self.cut()
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


@pytest.fixture
def proxy(mosquitto: Mosquitto) -> Iterator[Proxy]:
    proxy = Proxy(mosquitto.port)
    yield proxy
    proxy.close()


def said(seq: int, label: str = "robin") -> Observation:
    return Observation(1, "pi", "door", seq, "", label, 0.9, (), ModelId("m", "1", "d"), Timing(1, 2, 3))


@pytest.fixture
def publisher(proxy: Proxy, subscriber: Subscriber, tmp_path: Path) -> Iterator[MqttPublisher]:
    settings = MqttSettings(host="127.0.0.1", port=proxy.port, keepalive_s=2, results=True)
    with MqttPublisher(settings, "pi", tmp_path / "spool.sqlite") as publisher:
        # Retained, so it tells that the subscriber listens: an event before that would be nobody's.
        subscriber.wait_for("/pi/status", "online")
        yield publisher


def sequence(subscriber: Subscriber) -> list[int]:
    return [m["payload"]["seq"] for m in subscriber.messages("/event")]  # type: ignore[index]


def in_order(found: list[int]) -> list[int]:
    """What arrived, without what QoS 1 delivered again after a reconnect."""
    once = list(dict.fromkeys(found))
    assert once == sorted(once)
    return once


def timed(publish: Callable[[], None]) -> float:
    start = time.monotonic()
    publish()
    return time.monotonic() - start


def test_a_connection_cut_again_and_again_loses_no_event(
    proxy: Proxy, publisher: MqttPublisher, subscriber: Subscriber
) -> None:
    for seq in range(60):
        publisher.event(said(seq))
        if seq % 12 == 5:
            proxy.cut()
        time.sleep(0.05)
    wait_until(lambda: len(set(sequence(subscriber))) == 60, 60, "all events")
    assert in_order(sequence(subscriber)) == list(range(60))
    assert proxy.connections > 2


def test_a_broker_that_refuses_connections_is_tried_again(
    proxy: Proxy, publisher: MqttPublisher, subscriber: Subscriber
) -> None:
    publisher.event(said(0))
    wait_until(lambda: sequence(subscriber) == [0], 20, "the first event")
    proxy.mood = "refusing"
    proxy.cut()
    for seq in range(1, 5):
        publisher.event(said(seq))
    publisher.label(said(4, "wren"))
    wait_until(lambda: proxy.connections >= 3, 20, "that it was tried again")
    proxy.mood = "well"
    wait_until(lambda: len(set(sequence(subscriber))) == 5, 60, "the events")
    assert in_order(sequence(subscriber)) == list(range(5))
    label = subscriber.wait_for("/label")["payload"]
    assert label["label"] == "wren"  # type: ignore[index]


def test_a_half_open_connection_is_noticed_and_nobody_waits_for_it(
    proxy: Proxy, publisher: MqttPublisher, subscriber: Subscriber
) -> None:
    publisher.event(said(0))
    wait_until(lambda: sequence(subscriber) == [0], 20, "the first event")
    proxy.mood = "swallowing"
    slowest = 0.0
    for seq in range(1, 400):
        slowest = max(slowest, timed(lambda seq=seq: publisher.result(said(seq))))  # type: ignore[misc]
        if seq % 20 == 0:
            slowest = max(slowest, timed(lambda seq=seq: publisher.event(said(seq))))  # type: ignore[misc]
        slowest = max(slowest, timed(lambda seq=seq: publisher.label(said(seq))))  # type: ignore[misc]
    assert slowest < 0.5
    wait_until(lambda: proxy.connections >= 2, 30, "that keepalive noticed")
    proxy.mood = "well"
    proxy.cut()
    wait_until(lambda: len(set(sequence(subscriber))) == 20, 60, "the events")
    assert in_order(sequence(subscriber)) == [0, *range(20, 400, 20)]


def test_a_broker_that_does_not_keep_up_gets_fewer_results_and_all_events(
    proxy: Proxy, publisher: MqttPublisher, subscriber: Subscriber
) -> None:
    publisher.event(said(0))
    wait_until(lambda: sequence(subscriber) == [0], 20, "the first event")
    proxy.mood = "slow"
    for seq in range(1, 20_000):
        publisher.result(said(seq))
        if seq % 5000 == 0:
            publisher.event(said(seq))
    assert publisher.skipped > 1000
    assert len(publisher._unsent) <= 100
    proxy.mood = "well"
    wait_until(lambda: len(set(sequence(subscriber))) == 4, 60, "the events")
    assert in_order(sequence(subscriber)) == [0, 5000, 10_000, 15_000]
