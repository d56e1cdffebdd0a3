from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.config import (
    CameraTlsSettings,
    DashboardSettings,
    MqttSettings,
    Settings,
    TlsSettings,
    load_settings,
    mqtt_password,
)
from edge_agent.errors import ConfigError

GOOD = """\
device: porch-pi
bundle: birds-3.edgeloop
cameras:
  feeder:
    source: 0
"""


def load(folder: Path, text: str | bytes) -> Settings:
    path = folder / "agent.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_settings(path)


def refusal(folder: Path, text: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


def test_five_lines_are_enough_and_defaults_fill_the_rest(tmp_path: Path) -> None:
    settings = load(tmp_path, GOOD)
    assert settings.cameras["feeder"].source == 0
    assert (settings.mqtt.host, settings.mqtt.port, settings.mqtt.protocol) == ("localhost", 1883, "auto")
    assert settings.decision.enter is None


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "clip.avi").touch()
    settings = load(tmp_path, GOOD.replace("source: 0", "source: clip.avi"))
    assert settings.bundle == str(tmp_path / "birds-3.edgeloop")
    assert settings.cameras["feeder"].source == str(tmp_path / "clip.avi")
    address = load(tmp_path, GOOD.replace("source: 0", "source: rtsp://host/stream"))
    assert address.cameras["feeder"].source == "rtsp://host/stream"


def test_unknown_keys_get_a_suggestion_and_all_problems_come_at_once(tmp_path: Path) -> None:
    said = refusal(
        tmp_path,
        GOOD.replace("device: porch-pi", "devcie: porch-pi")
        + "mqtt:\n  prot: 1\n  port: 99999\n  protocol: 5\ndecision: {enter: 2}\nthreads: many\n",
    )
    assert "unknown key 'devcie', did you mean 'device'?" in said
    assert "'device' is missing" in said
    assert "unknown key 'mqtt.prot', did you mean" in said
    assert "mqtt.port" in said
    assert "mqtt.protocol" in said
    assert "decision.enter" in said
    assert "threads" in said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected keys and values, found nothing"),
        ("- a\n- b\n", "found a list"),
        ("device: [unclosed", "not YAML in line"),
        (b"device: \xff\xfe", "not UTF-8"),
        (GOOD.replace("device: porch-pi", "device: porch/pi"), "device"),
        (GOOD.replace("device: porch-pi", "device: '#'"), "device"),
        (GOOD.replace("  feeder:", "  'a/b':"), "cameras: name 'a/b'"),
        (GOOD.replace("    source: 0\n", "    loop: true\n"), "'cameras.feeder.source' is missing"),
        (GOOD.split("cameras", maxsplit=1)[0] + "cameras: {}\n", "cameras"),
        (GOOD + "mqtt: {host: 'a..b'}\n", "mqtt.host"),
        (GOOD + "mqtt: {host: ''}\n", "mqtt.host"),
        (GOOD + "device: again\n", "duplicate key 'device'"),
        (GOOD + "decision: {enter: 0.3, leave: 0.5}\n", "must not be above"),
        (GOOD + "mqtt: {password_file: secret}\n", "no mqtt.username"),
        (GOOD + "mqtt: &m {port: 1}\ndecision: *m\n", "aliases"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "aliases"),
        ("? [a, b]\n: c\n", "not YAML"),
        ("? {a: b}\n: c\n", "not YAML"),
        ("device: 2026-99-99\n", "value that does not fit its type"),
        ("device: !!bool maybe\n", "value that does not fit its type"),
        ("device: !!timestamp maybe\n", "value that does not fit its type"),
        ("device: " + "9" * 5000 + "\n", "value that does not fit its type"),
        ("1: a\n", "unknown key '1'"),
        ("[" * 5000, "nested too deeply"),
        ("!!python/object/apply:os.system ['true']\n", "not YAML"),
        ("x: " + "a" * 300_000, "over 256 KiB"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path: Path, text: str | bytes, says: str) -> None:
    assert says in refusal(tmp_path, text)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"docs/reference/agent-yaml\.md"):
        load_settings(tmp_path / "agent.yaml")


@given(text=st.text(max_size=200))
def test_no_text_raises_anything_but_a_refusal(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with suppress(ConfigError):
        load_settings(path)


def test_the_password_comes_from_a_file_only_some_may_read_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "secret").write_text("from the file\nnot this\n")
    (tmp_path / "secret").chmod(0o644)
    monkeypatch.setenv("EDGELOOP_MQTT_PASSWORD", "from the environment")
    settings = load(tmp_path, GOOD + "mqtt: {username: me, password_file: secret}\n")
    assert mqtt_password(settings.mqtt) == "from the file"
    assert mqtt_password(MqttSettings(username="me")) == "from the environment"
    assert "secret: every user of this device can read the MQTT password" in caplog.text
    caplog.clear()
    (tmp_path / "secret").chmod(0o640)
    mqtt_password(settings.mqtt)
    assert not caplog.text
    (tmp_path / "secret").write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        mqtt_password(settings.mqtt)


def test_encryption_needs_no_file_and_its_keys_are_checked_like_all_others(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD + "mqtt: {tls: {}}\n").mqtt.tls == TlsSettings()
    assert load(tmp_path, GOOD + "mqtt: {tls: null}\n").mqtt.tls is None
    tls = load(tmp_path, GOOD + "mqtt: {tls: {ca: ca.pem, certificate: /etc/pi.pem}}\n").mqtt.tls
    assert tls == TlsSettings(ca=str(tmp_path / "ca.pem"), certificate="/etc/pi.pem")
    said = refusal(tmp_path, GOOD + "mqtt: {tls: {cert: a, ca: 5}}\n")
    assert "unknown key 'mqtt.tls.cert', expected one of ca, certificate, key" in said
    assert "mqtt.tls.ca: expected" in said
    assert "mqtt.tls: expected keys and values, found True" in refusal(tmp_path, GOOD + "mqtt: {tls: true}\n")
    assert "but no mqtt.tls.certificate" in refusal(tmp_path, GOOD + "mqtt: {tls: {key: pi.key}}\n")


def test_the_dashboard_is_also_accepted_under_its_former_name_but_not_under_both(tmp_path: Path) -> None:
    for key in ("dashboard", "page"):
        assert load(tmp_path, GOOD + f"{key}: {{port: 8081}}\n").dashboard == DashboardSettings(port=8081)
    assert load(tmp_path, GOOD).dashboard is None
    message = refusal(tmp_path, GOOD + "page: {}\ndashboard: {}\n")
    assert message.endswith("agent.yaml: found both dashboard and page, its former name; remove page")
    assert "dashboard.port" in refusal(tmp_path, GOOD + "page: {port: 0}\n")


EVERY_KEY: dict[str, Any] = {
    "device": "porch-pi",
    "bundle": "birds-3.edgeloop",
    "allowed_signers": "allowed_signers",
    "state": "state",
    "threads": 2,
    "delegate": "libedgetpu.so.1",
    "install.unsigned": True,
    "install.hosts": ["releases.example"],
    "health_every_s": 60,
    "log": "json",
    "cameras.NAME.source": "https://host/stream",
    "cameras.NAME.loop": True,
    "cameras.NAME.size": [1280, 720],
    "cameras.NAME.fps": 5,
    "cameras.NAME.region": [0, 0, 0.5, 0.5],
    "cameras.NAME.timeout_s": 10,
    "cameras.NAME.frozen_s": 0,
    "cameras.NAME.motion.threshold": 4,
    "cameras.NAME.motion.every_s": 60,
    "cameras.NAME.tls.fingerprint": "0a:" * 31 + "0A",
    "mqtt.host": "broker.local",
    "mqtt.port": 8883,
    "mqtt.protocol": "3.1.1",
    "mqtt.username": "porch",
    "mqtt.password_file": "mqtt-password",
    "mqtt.prefix": "birds",
    "mqtt.results": True,
    "mqtt.keepalive_s": 60,
    "mqtt.event_expiry_s": 3600,
    "mqtt.commands": False,
    "mqtt.discovery": "homeassistant",
    "mqtt.tls.ca": "ca.pem",
    "mqtt.tls.certificate": "device.pem",
    "mqtt.tls.key": "device.key",
    "decision.smoothing_s": 1,
    "decision.enter": 0.8,
    "decision.leave": 0.4,
    "decision.min_time_s": 1,
    "decision.classes.LABEL.enter": 0.9,
    "decision.classes.LABEL.leave": 0.5,
    "decision.classes.LABEL.min_time_s": 2,
    "record.per_hour": 10,
    "record.random_every_s": 600,
    "record.max_mb": 100,
    "record.min_free_mb": 200,
    "dashboard.host": "0.0.0.0",
    "dashboard.port": 80,
    "dashboard.password_file": "dashboard-password",
    "dashboard.hosts": ["cam.example"],
}

INSTEAD = {"cameras.NAME.tls.ca": ("ca.pem", "cameras.NAME.tls.fingerprint")}
"""A key, its value, and the key that it replaces."""


def file_with(keys: dict[str, Any]) -> str:
    document: dict[str, Any] = {}
    for key, value in keys.items():
        *parents, last = key.replace("NAME", "front").replace("LABEL", "great tit").split(".")
        inner = document
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return yaml.safe_dump(document)


def test_every_documented_key_is_accepted_and_every_key_is_documented(tmp_path: Path) -> None:
    table = (Path(__file__).parents[2] / "docs/reference/agent-yaml.md").read_text()
    first_cells = re.findall(r"^\| ((?:`[\w.]+`(?:, )?)+) \|", table, re.MULTILINE)
    documented = re.findall(r"`([\w.]+)`", " ".join(first_cells))
    assert sorted(documented) == sorted([*EVERY_KEY, *INSTEAD])
    for key, (value, replaced) in INSTEAD.items():
        load(tmp_path, file_with({name: EVERY_KEY[name] for name in EVERY_KEY if name != replaced} | {key: value}))
    settings = load(tmp_path, file_with(EVERY_KEY))
    default = Settings(device="porch-pi", cameras={})
    left = {name for name in Settings.__struct_fields__ if getattr(settings, name) == getattr(default, name)}
    assert left == {"device"}
    rule = settings.decision.classes["great tit"]
    assert (rule.enter, rule.leave, rule.min_time_s) == (0.9, 0.5, 2)


def test_certificates_of_a_camera(tmp_path: Path) -> None:
    secure = 'device: pi\ncameras: {door: {source: "https://door/", tls: %s}}\n'
    for certificates, said in {
        "{}": "cameras.door.tls: expected either ca or fingerprint",
        f"{{ca: a.pem, fingerprint: {'ab' * 32}}}": "cameras.door.tls: expected either ca or fingerprint",
        "{fingerprint: abcd}": "cameras.door.tls.fingerprint: expected 64 hexadecimal digits, as openssl prints",
    }.items():
        assert said in refusal(tmp_path, secure % certificates)
    assert load(tmp_path, secure % "{ca: a.pem}").cameras["door"].tls == CameraTlsSettings(ca=str(tmp_path / "a.pem"))
    plain = "device: pi\ncameras: {door: {source: 0, tls: {ca: a.pem}}}\n"
    assert "cameras.door.tls is given, but its source is not an https:// address" in refusal(tmp_path, plain)


def test_a_wrong_key_or_value_of_one_label_is_named(tmp_path: Path) -> None:
    said = refusal(tmp_path, GOOD + "decision: {classes: {robin: {entre: 0.9, leave: 2}, wren: 0.5}}\n")
    assert "unknown key 'decision.classes.robin.entre', did you mean 'enter'?" in said
    assert "decision.classes.robin.leave: " in said
    assert "decision.classes.wren: expected keys and values, found 0.5" in said
