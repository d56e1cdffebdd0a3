"""Talking MQTT: topics, messages, and the connection they go through."""

from __future__ import annotations

from .client import MqttPublisher
from .received import ReceivedMessage, read_message
from .topics import Topics

__all__ = ["MqttPublisher", "ReceivedMessage", "Topics", "read_message"]
