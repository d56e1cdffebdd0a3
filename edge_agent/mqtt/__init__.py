"""MQTT: topics, the client of the agent, commands, and reading an agent's messages."""

from __future__ import annotations

from .client import MqttPublisher
from .received import ReceivedMessage, read_message
from .topics import Topics

__all__ = ["MqttPublisher", "ReceivedMessage", "Topics", "read_message"]
