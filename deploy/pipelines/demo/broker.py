"""Runs the MQTT broker of the demo: rumqttd from the `iotcore` package, reachable only from this machine."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_agent.errors import BrokerError, MissingExtraError

# rumqttd supports MQTT 5 only on listeners of a configuration file; see rumqttd.toml in its repository.
_CONFIG = """\
id = 0

[router]
id = 0
max_connections = 16
max_outgoing_packet_count = 200
max_segment_size = 1048576
max_segment_count = 10

[v5.1]
name = "mqtt5"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1
    [v5.1.connections]
    connection_timeout_ms = 60000
    max_payload_size = 262144
    max_inflight_count = 100
    dynamic_filters = true
"""


@contextmanager
def embedded_broker(folder: Path) -> Iterator[int]:
    """Run an MQTT 5 broker and yield its port on 127.0.0.1. Its configuration is written to ``folder``.

    Raises:
        MissingExtraError: iotcore is not installed.
        BrokerError: the broker does not start.
    """
    try:
        from iotcore import Broker
    except ImportError as error:
        raise MissingExtraError("the embedded broker", "demo", error.name) from error
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    config = folder / "broker.toml"
    config.write_text(_CONFIG.format(port=port), encoding="utf-8")
    broker = Broker(config_path=str(config))
    try:
        broker.start()
    except (RuntimeError, OSError) as error:
        raise BrokerError(f"the embedded broker does not start: {error}; give another one with --broker") from error
    try:
        yield port
    finally:
        broker.stop()
