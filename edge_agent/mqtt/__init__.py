"""Talking MQTT: topics, messages, and the connection they go through."""

from __future__ import annotations

from .publisher import MqttPublisher, Publisher, RecordingPublisher
from .topics import Topics

__all__ = ["MqttPublisher", "Publisher", "RecordingPublisher", "Topics"]
