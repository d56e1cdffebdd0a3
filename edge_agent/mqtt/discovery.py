"""Home Assistant's discovery message, which makes the device appear automatically with all its entities.

Source of the keys and topics: Home Assistant's documentation of the MQTT integration, "Device discovery payload".
"""

from __future__ import annotations

import json
from typing import Any

from .._version import __version__
from ..messages import UNKNOWN, Info
from .topics import Topics


def discovery_topic(prefix: str, topics: Topics) -> str:
    """Topic of the discovery message."""
    return f"{prefix}/device/{_base(topics)}/config"


def discovery(topics: Topics, info: Info) -> dict[str, Any]:
    """Create the discovery message, which must be published retained.

    It announces a label, score, connection, image and snapshot button for each camera. For the device, it announces
    model, threshold, temperature, memory and a rollback button.
    """
    base = _base(topics)
    components: dict[str, dict[str, Any]] = {
        "model": {
            "platform": "sensor",
            "name": "Model",
            "icon": "mdi:brain",
            "entity_category": "diagnostic",
            "state_topic": topics.info,
            "value_template": "{{ value_json.model.name }} {{ value_json.model.version }}",
        },
        "temperature": {
            "platform": "sensor",
            "name": "Processor temperature",
            "device_class": "temperature",
            "state_class": "measurement",
            "unit_of_measurement": "°C",
            "entity_category": "diagnostic",
            "state_topic": topics.health,
            "value_template": "{{ value_json.temperature_c }}",
        },
        "memory": {
            "platform": "sensor",
            "name": "Memory",
            "device_class": "data_size",
            "state_class": "measurement",
            "unit_of_measurement": "MB",
            "entity_category": "diagnostic",
            "state_topic": topics.health,
            "value_template": "{{ value_json.memory_mb }}",
        },
        "enter": {
            "platform": "number",
            "name": "Threshold",
            "icon": "mdi:gauge",
            "entity_category": "config",
            "state_topic": topics.tunables,
            "value_template": "{{ value_json.enter }}",
            "command_topic": topics.command("set"),
            "command_template": '{"enter": {{ value }}}',
            "min": 0,
            "max": 1,
            "step": 0.01,
        },
        "rollback": {
            "platform": "button",
            "name": "Back to the model before",
            "icon": "mdi:history",
            "entity_category": "config",
            "command_topic": topics.command("rollback"),
            "payload_press": "{}",
        },
    }
    # Home Assistant makes entity ids of these names: they stay as they are.
    for camera in info.cameras:
        components |= _camera(topics, camera, [*info.labels, UNKNOWN])
    for key, component in components.items():
        component["unique_id"] = f"{base}_{key}"
    return {
        "device": {
            "identifiers": [base],
            "name": topics.device,
            "manufacturer": "edgeloop",
            "model": info.runtime,
            "sw_version": info.edgeloop,
        },
        "origin": {"name": "edgeloop", "sw_version": __version__},
        "availability_topic": topics.status,
        "components": components,
    }


def _camera(topics: Topics, camera: str, labels: list[str]) -> dict[str, dict[str, Any]]:
    return {
        f"camera_{camera}_label": {
            "platform": "sensor",
            "name": f"{camera} label",
            "icon": "mdi:tag",
            "device_class": "enum",
            "options": list(dict.fromkeys(labels)),
            "state_topic": topics.label(camera),
            "value_template": "{{ value_json.label }}",
            "json_attributes_topic": topics.label(camera),
        },
        f"camera_{camera}_score": {
            "platform": "sensor",
            "name": f"{camera} score",
            "icon": "mdi:percent",
            "state_class": "measurement",
            "unit_of_measurement": "%",
            "state_topic": topics.label(camera),
            "value_template": "{{ (value_json.score * 100) | round(1) }}",
        },
        f"camera_{camera}_connection": {
            "platform": "binary_sensor",
            "name": f"{camera} camera",
            "device_class": "connectivity",
            "entity_category": "diagnostic",
            "state_topic": topics.camera(camera),
            "value_template": "{{ 'ON' if value == 'online' else 'OFF' }}",
        },
        f"camera_{camera}_picture": {
            "platform": "image",
            "name": f"{camera} picture",
            "image_topic": topics.snapshot(camera),
            "content_type": "image/jpeg",
        },
        f"camera_{camera}_snapshot": {
            "platform": "button",
            "name": f"{camera} snapshot",
            "icon": "mdi:camera",
            "command_topic": topics.command("snapshot"),
            "payload_press": json.dumps({"camera": camera}),
        },
    }


def _base(topics: Topics) -> str:
    return f"{topics.prefix}_{topics.device}"
