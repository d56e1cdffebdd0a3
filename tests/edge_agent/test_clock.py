"""Ages and corrections on devices whose clock is wrong, is set, or jumps."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from edge_agent import clock
from edge_agent.clock import Stamp, age_s, correction_s, is_clock_set

NOW = Stamp(2_000_000.0, "this boot", 500.0, is_set=True)


def test_within_a_boot_the_age_does_not_depend_on_the_clock() -> None:
    for wall_s, is_set in ((0.0, False), (9e9, True), (NOW.wall_s, True)):
        stamp = Stamp(wall_s, "this boot", 470.0, is_set)
        assert age_s(stamp, NOW) == 30.0
        assert age_s(stamp, NOW._replace(is_set=False)) == 30.0


def test_across_boots_the_age_is_known_only_if_both_clocks_were_set() -> None:
    stamp = Stamp(NOW.wall_s - 60, "another boot", 9.0, is_set=True)
    assert age_s(stamp, NOW) == 60.0
    assert age_s(stamp._replace(is_set=False), NOW) is None
    assert age_s(stamp, NOW._replace(is_set=False)) is None
    assert age_s(stamp._replace(wall_s=NOW.wall_s + 60), NOW) == 0.0


def test_a_time_of_an_unset_clock_is_corrected_once_the_clock_is_set() -> None:
    # Twenty days behind, 100 s before now.
    stamp = Stamp(NOW.wall_s - 20 * 86_400 - 100, "this boot", 400.0, is_set=False)
    assert correction_s(stamp, NOW) == 20 * 86_400
    assert correction_s(stamp, NOW._replace(is_set=False)) is None
    assert correction_s(stamp._replace(is_set=True), NOW) is None
    assert correction_s(stamp._replace(boot="another boot"), NOW) is None
    assert correction_s(stamp._replace(boot=""), NOW._replace(boot="")) is None


def test_the_present_goes_on() -> None:
    first, second = Stamp.now(), Stamp.now()
    assert first.boot == second.boot != ""
    assert 0 < first.uptime_s <= second.uptime_s
    assert age_s(first, second) is not None


@pytest.mark.parametrize(
    ("hardware", "synchronized", "kernel", "expected"),
    [(True, False, False, True), (False, True, False, True), (False, False, True, True), (False, False, False, False)],
)
def test_a_clock_is_set_by_the_network_or_by_a_hardware_clock(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    hardware: bool,
    synchronized: bool,
    kernel: bool,
    expected: bool,
) -> None:
    rtc = tmp_path / "rtc" / "rtc0"
    rtc.mkdir(parents=True)
    (rtc / "hctosys").write_text("1\n" if hardware else "0\n")
    if synchronized:
        (tmp_path / "synchronized").touch()
    monkeypatch.setattr(clock, "_RTC", tmp_path / "rtc")
    monkeypatch.setattr(clock, "_SYNCHRONIZED", tmp_path / "synchronized")
    monkeypatch.setattr(clock, "_is_synchronized", lambda: kernel)
    monkeypatch.setattr(clock, "_was_set", threading.Event())
    clock._has_hardware_clock.cache_clear()
    try:
        assert is_clock_set() is expected
        # As after hours without a network.
        monkeypatch.setattr(clock, "_is_synchronized", lambda: False)
        assert is_clock_set() is expected
    finally:
        clock._has_hardware_clock.cache_clear()
