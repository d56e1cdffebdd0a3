"""The published schemas are those of the messages, and say what they must; Home Assistant's message has its names."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import jsonschema
import msgspec
import pytest
from hypothesis import given

from edge_agent.messages import (
    CameraHealth,
    CameraInfo,
    CameraState,
    Health,
    Info,
    Latency,
    ModelId,
    Observation,
    Percentiles,
    Reply,
    SpoolHealth,
    Timing,
    TopScore,
    Tunables,
)
from edge_agent.mqtt.commands import VERBS, parsed
from edge_agent.mqtt.discovery import discovery, discovery_topic
from edge_agent.mqtt.topics import Topics

from ..edge_agent.mqtt.test_commands import BAD, GOOD, PAYLOADS

ROOT = Path(__file__).parents[2]
MODEL = ModelId("birds", "3", "abc")
SPREAD = Percentiles(5, 1.0, 2.0, 3.0, 4.0)
INFO = Info(
    1, "pi", MODEL, ("robin", "wren"), {"door": CameraInfo("0")}, 4, None, "ai-edge-litert 2", "0.1", "3.11.2", False
)
MESSAGES: dict[str, msgspec.Struct] = {
    "info": INFO,
    "observation": Observation(
        1, "pi", "door", 7, "2026-01-31T12:00:00.123Z", "robin", 0.9, (TopScore("robin", 0.9),), MODEL, Timing(1, 2, 3)
    ),
    "health": Health(
        v=1,
        device="pi",
        at="2026-01-31T12:00:00.123Z",
        uptime_s=1.0,
        model=MODEL,
        temperature_c=None,
        throttled=("under_voltage",),
        load_1min=0.5,
        memory_mb=80.0,
        memory_free_mb=None,
        disk_free_mb=1.0,
        latency_ms=Latency(SPREAD, SPREAD, SPREAD),
        cameras={"door": CameraHealth("online", 15.0, 15.0, 0, 0, 0, 0)},
        spool=SpoolHealth(0, 0, True),
        recorder=None,
    ),
    "settings": Tunables(1, "pi", 0.7, 0.5, 0.3, 0.5, False),
    "reply": Reply(1, "pi", "a1", "bench", True, None, {"p50_ms": 3.0}),
}


def schema(name: str) -> dict[str, Any]:
    return json.loads((ROOT / f"docs/schemas/{name}.json").read_text())  # type: ignore[no-any-return]


def test_the_schemas_are_those_of_the_code() -> None:
    ran = subprocess.run([sys.executable, "scripts/schemas.py", "--check"], cwd=ROOT, check=False)
    assert ran.returncode == 0, "run: python scripts/schemas.py"


ADDED_LATER = {"mqtt_protocol"}
"""Fields that messages of older agents do not have, so that no reader may rely on them."""


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_fits_its_schema_and_one_without_a_field_does_not(name: str) -> None:
    message = json.loads(msgspec.json.encode(MESSAGES[name]))
    jsonschema.Draft202012Validator.check_schema(schema(name))
    jsonschema.validate(message, schema(name))
    for field in message.keys() - ADDED_LATER:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({key: value for key, value in message.items() if key != field}, schema(name))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**message, "v": "one"}, schema(name))


@pytest.mark.parametrize("verb", VERBS)
def test_a_command_fits_its_schema(verb: str) -> None:
    jsonschema.validate(GOOD[verb], schema(f"cmd-{verb}"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**GOOD[verb], "more": 1}, schema(f"cmd-{verb}"))


@given(PAYLOADS)
def test_what_is_done_is_what_the_schema_allows(payload: bytes) -> None:
    for verb in VERBS:
        try:
            parsed(verb, payload)
        except Exception:  # noqa: BLE001
            continue
        jsonschema.validate(json.loads(payload.strip() or b"{}"), schema(f"cmd-{verb}"))


def test_bad_commands_do_not_fit() -> None:
    for verb, payload, _ in BAD:
        if verb not in VERBS or b"NaN" in payload or b"999" in payload:
            continue
        try:
            document = json.loads(payload)
        except (ValueError, RecursionError):
            continue
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document, schema(f"cmd-{verb}"))


# From Home Assistant's documentation: MQTT, "Device discovery payload", and the pages of each kind of entity.
COMMON = {"platform", "name", "icon", "unique_id", "entity_category", "device_class", "value_template"}
ENTITY = {
    "sensor": COMMON | {"state_topic", "state_class", "unit_of_measurement", "options", "json_attributes_topic"},
    "binary_sensor": COMMON | {"state_topic"},
    "image": COMMON | {"image_topic", "content_type"},
    "number": COMMON | {"state_topic", "command_topic", "command_template", "min", "max", "step"},
    "button": COMMON | {"command_topic", "payload_press"},
}
NEEDED = {
    "sensor": {"state_topic"},
    "binary_sensor": {"state_topic"},
    "image": {"image_topic"},
    "number": {"command_topic"},
    "button": {"command_topic"},
}


def test_home_assistants_message_has_only_names_it_knows_and_all_it_needs() -> None:
    topics = Topics("edgeloop", "pi")
    message = discovery(topics, INFO)
    assert discovery_topic("homeassistant", topics) == "homeassistant/device/edgeloop_pi/config"
    assert set(message) == {"device", "origin", "availability_topic", "components"}
    assert set(message["device"]) == {"identifiers", "name", "manufacturer", "model", "sw_version"}
    assert message["origin"]["name"]
    ids = [component["unique_id"] for component in message["components"].values()]
    assert len(set(ids)) == len(ids)
    for component in message["components"].values():
        kind = component["platform"]
        assert set(component) <= ENTITY[kind]
        assert NEEDED[kind] | {"unique_id", "name"} <= set(component)
    label = message["components"]["camera_door_label"]
    assert label["options"] == ["robin", "wren", "unknown"]
    assert json.loads(msgspec.json.encode(message)) == message


def test_what_home_assistant_reads_is_where_it_looks_and_what_it_sends_is_a_command() -> None:
    topics = Topics("edgeloop", "pi")
    kinds = {topics.info: "info", topics.label("door"): "observation", topics.health: "health"}
    kinds[topics.tunables] = "settings"
    message = discovery(topics, INFO)
    assert message["availability_topic"] == topics.status
    read = set()
    for key, component in message["components"].items():
        template = component.get("value_template", "")
        paths = re.findall(r"value_json\.([a-z0-9_.]+)", template)
        for path in paths:
            found = msgspec.to_builtins(MESSAGES[kinds[component["state_topic"]]])
            for name in path.split("."):
                found = found[name]
            read.add(path)
        if component["platform"] in ("sensor", "number"):
            assert paths, key
        if "command_topic" in component:
            verb = component["command_topic"].removeprefix("edgeloop/pi/cmd/")
            payload = component.get("payload_press") or component["command_template"].replace("{{ value }}", "0.5")
            assert verb == {"rollback": "rollback", "enter": "set", "camera_door_snapshot": "snapshot"}[key]
            assert parsed(verb, payload.encode())
    assert read == {"model.name", "model.version", "temperature_c", "memory_mb", "enter", "label", "score"}
    connection = message["components"]["camera_door_connection"]
    assert connection["state_topic"] == topics.camera("door")
    shown = re.fullmatch(r"{{ 'ON' if value == '(\w+)' else 'OFF' }}", connection["value_template"])
    assert shown is not None
    assert shown[1] in get_args(CameraState)
    assert message["components"]["camera_door_picture"]["image_topic"] == topics.snapshot("door")
