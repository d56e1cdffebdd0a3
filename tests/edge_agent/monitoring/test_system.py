"""The machine's own figures, from real files laid out as a Raspberry Pi's kernel does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_agent.monitoring import system


def test_the_processors_temperature_is_read_in_degrees(tmp_path: Path) -> None:
    zones = tmp_path / "sys/class/thermal"
    for number, (kind, temperature) in enumerate([("acpitz", "27800"), ("cpu-thermal", "61234")]):
        (zones / f"thermal_zone{number}").mkdir(parents=True)
        (zones / f"thermal_zone{number}/type").write_text(f"{kind}\n")
        (zones / f"thermal_zone{number}/temp").write_text(f"{temperature}\n")
    assert system.temperature_c(tmp_path) == 61.2
    (zones / "thermal_zone1/temp").write_text("no number\n")
    assert system.temperature_c(tmp_path) == 27.8


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("0", ()),
        ("0x50005", ("under_voltage", "throttled", "under_voltage_occurred", "throttled_occurred")),
        ("80000\n", ("soft_temperature_limit_occurred",)),
        ("2", ("frequency_capped",)),
        ("no number", None),
    ],
)
def test_the_firmwares_flags_have_names(tmp_path: Path, text: str, flags: tuple[str, ...] | None) -> None:
    for node in ("soc/soc:firmware", "soc@107c000000/soc@107c000000:firmware"):  # to a Pi 4, and a Pi 5
        folder = tmp_path / node.partition("/")[0] / "sys/devices/platform" / node
        folder.mkdir(parents=True)
        (folder / "get_throttled").write_text(text)
        assert system.throttled(tmp_path / node.partition("/")[0]) == flags


def test_with_a_current_kernel_vcgencmd_reports_the_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin/vcgencmd"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\n[ "$1" = get_throttled ] && echo throttled=0x50005\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    flags = ("under_voltage", "throttled", "under_voltage_occurred", "throttled_occurred")
    assert system.throttled(tmp_path) == flags
    program.write_text("#!/bin/sh\necho 'VCHI initialization failed' >&2\nexit 255\n")
    assert system.throttled(tmp_path) is None


@pytest.mark.parametrize(("alarm", "flags"), [("1\n", ("under_voltage",)), ("0\n", ())])
def test_without_vcgencmd_the_voltage_sensor_reports_an_alarm(
    tmp_path: Path, alarm: str, flags: tuple[str, ...]
) -> None:
    for number, (name, value) in enumerate([("cpu_thermal", "0\n"), ("rpi_volt", alarm)]):
        sensor = tmp_path / f"sys/class/hwmon/hwmon{number}"
        sensor.mkdir(parents=True)
        (sensor / "name").write_text(f"{name}\n")
        (sensor / "in0_lcrit_alarm").write_text(value)
    assert system.throttled(tmp_path) == flags


def test_what_a_machine_cannot_tell_is_none(tmp_path: Path) -> None:
    told = (system.temperature_c, system.throttled, system.resident_mb, system.available_mb)
    assert [tell(tmp_path) for tell in told] == [None] * 4


def test_memory_is_that_of_this_process() -> None:
    before = system.resident_mb()
    held = bytearray(os.urandom(1000) * 50_000)
    after = system.resident_mb()
    assert before is not None
    assert after is not None
    assert 40 <= after - before <= 80
    assert len(held) == 50_000_000
    assert (system.available_mb() or 0) > 10
