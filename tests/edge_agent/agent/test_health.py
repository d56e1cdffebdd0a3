"""How the device is, from real files laid out as a Raspberry Pi's kernel does; and what systemd is told."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.agent import logs, systemd


@pytest.mark.parametrize("abstract", [True, False])
def test_systemd_hears_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, abstract: bool) -> None:
    address = f"@edgeloop-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address.replace("@", "\0"))
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        systemd.notify("READY=1")
        assert listener.recv(100) == b"READY=1"


def test_without_systemd_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("", "relative", str(tmp_path / "gone")):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        systemd.notify("READY=1")


@pytest.mark.parametrize(
    ("usec", "pid", "expected"),
    [("30000000", "", 30.0), ("30000000", "self", 30.0), ("30000000", "1", None), ("", "", None)],
)
def test_the_watchdog_waits_for_its_own_process(
    monkeypatch: pytest.MonkeyPatch, usec: str, pid: str, expected: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "self" else pid)
    assert systemd.watchdog_s() == expected


@pytest.fixture
def _root_logger() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = before, level


@pytest.mark.usefixtures("_root_logger")
def test_a_log_line_is_one_line_whatever_it_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("text")
    logging.getLogger("x").warning("camera %s", "door\nINFO forged\x1b[31m")
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("WARNING camera door\\x0aINFO forged\\x1b[31m")


@pytest.mark.usefixtures("_root_logger")
def test_as_json_each_line_is_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    logging.getLogger("edge_agent.x").warning("camera %s", "door\nforged")
    try:
        int("why")
    except ValueError:
        logging.getLogger("x").exception("failed")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["level"], first["logger"], first["message"]) == ("warning", "edge_agent.x", "camera door\nforged")
    assert first["time"].endswith("Z")
    assert "ValueError: invalid literal" in second["exception"]
