"""Receives the messages that agents publish, and prints them: python examples/mqtt_subscriber.py [HOST [PORT]]

`edge_agent.read_message` converts each MQTT message into a typed object.
"""

from __future__ import annotations

import sys
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

import edge_agent


def show(message: edge_agent.ReceivedMessage) -> None:
    where = f"{message.device}/{message.camera}" if message.camera else message.device
    match message.body:
        case edge_agent.Observation(label=label, score=score, timing_ms=timing):
            print(f"{where}: {message.kind} {label} ({score:.2f}), {timing.capture_to_publish:.1f} ms old", flush=True)
        case edge_agent.Info(model=model, labels=labels):
            print(f"{where}: runs {model.name} {model.version} with {len(labels)} labels", flush=True)
        case edge_agent.Health(temperature_c=temperature_c, memory_mb=memory_mb):
            print(f"{where}: {temperature_c} °C, {memory_mb} MB", flush=True)
        case edge_agent.Reply(verb=verb, ok=ok, error=error):
            print(f"{where}: {verb} {'done' if ok else f'refused: {error}'}", flush=True)
        case str(text):
            print(f"{where}: {text}", flush=True)


def main() -> None:
    host = sys.argv[1] if len(sys.argv) > 1 else "localhost"
    port = int(sys.argv[2]) if len(sys.argv) > 2 else 1883
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)

    def on_connect(*_details: Any) -> None:
        client.subscribe("edgeloop/#", qos=1)

    def on_message(_client: mqtt.Client, _data: Any, received: mqtt.MQTTMessage) -> None:
        try:
            message = edge_agent.read_message(received.topic, received.payload)
        except edge_agent.EdgeloopError as error:
            print(error, file=sys.stderr)
            return
        if message is not None:
            show(message)

    client.on_connect = on_connect
    client.on_message = on_message
    client.connect(host, port)
    try:
        client.loop_forever()
    except KeyboardInterrupt:
        client.disconnect()


if __name__ == "__main__":
    main()
