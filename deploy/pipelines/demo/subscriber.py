"""Subscribes to the MQTT messages of a device for the demo, and collects its labels and results."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec
import numpy as np
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edge_agent.errors import BrokerError
from edge_agent.messages import Observation
from edge_agent.mqtt import Topics


@dataclass
class ReceivedLabels:
    """Messages received so far.

    Attributes:
        results: result of every inference.
        labels: decided labels of the camera.
        status: last status of the device, ``online`` or ``offline``.
    """

    results: list[Observation] = field(default_factory=list)
    labels: list[Observation] = field(default_factory=list)
    status: str = ""

    def accuracy(self, truth: list[str]) -> float:
        """Return the fraction of classified frames with the correct label, 0 to 1.

        ``truth[seq]`` is the class of frame ``seq``.
        """
        return float(np.mean([result.label == truth[result.seq] for result in self.results]))

    def latencies_ms(self) -> tuple[float, float, float]:
        """Return the 50th, 95th and 99th percentiles of the time for preprocessing and inference, in milliseconds."""
        times = [result.timing_ms.preprocess + result.timing_ms.inference for result in self.results]
        p50, p95, p99 = np.percentile(times, (50, 95, 99))
        return float(p50), float(p95), float(p99)


class Watcher:
    """Context manager that subscribes to one device.

    Args:
        host, port: address of the broker.
        topics: topics of the device.
        camera: name of the camera whose labels and results are collected.
    """

    def __init__(self, host: str, port: int, topics: Topics, camera: str) -> None:
        self.received = ReceivedLabels()
        self._where = f"{host}:{port}"
        self._topics, self._camera = topics, camera
        self._subscribed = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._on_message
        self._address = (host, port)

    def __enter__(self) -> Self:
        try:
            self._client.connect(*self._address)
        except OSError as error:
            raise BrokerError(
                f"the broker at {self._where} cannot be reached: {error}; start one, or leave out --broker"
            ) from error
        self._client.loop_start()
        if not self._subscribed.wait(10):
            self._client.loop_stop()
            raise BrokerError(
                f"the broker at {self._where} accepts no subscription; does it allow anonymous MQTT 5 clients?"
            )
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if not reason.is_failure:
            topics = self._topics
            client.subscribe(
                [(topic, 1) for topic in (topics.status, topics.label(self._camera), topics.result(self._camera))]
            )

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        if message.topic == self._topics.status:
            self.received.status = message.payload.decode()
        elif message.topic == self._topics.label(self._camera):
            self.received.labels.append(msgspec.json.decode(message.payload, type=Observation))
        else:
            self.received.results.append(msgspec.json.decode(message.payload, type=Observation))
