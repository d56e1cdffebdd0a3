"""Talking MQTT: topics, messages, and the connection they go through."""

from __future__ import annotations

from .client import MqttPublisher
from .topics import Topics

__all__ = ["MqttPublisher", "Topics"]
