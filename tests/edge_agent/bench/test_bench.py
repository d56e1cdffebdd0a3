"""`edgeloop bench`: when a model is warm, what disturbed a measurement, and reports of real ones, broken off or not."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from edge_agent.bench.energy import EnergyMeter, pmic_watts
from edge_agent.bench.machine import clock_mhz, describe
from edge_agent.bench.op_profile import shares
from edge_agent.bench.report import Report, Spread, load
from edge_agent.bench.steady_state import disturbances, drift, warm_from
from edge_agent.errors import ConfigError

from ...conftest import IMAGE_SIZE, Run, wait_until
from ...support.bundles import repacked
from ...support.processes import interruptible

ROOT = Path(__file__).parents[3]
QUICK = ("--threads", 1, "--seconds", 0.3, "--rounds", 2)


# --- arithmetic ---


def noisy(count: int, seed: int = 3) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Times as a processor gives them: 5 ms, skewed, now and then twice that."""
    random = np.random.default_rng(seed)
    return 5 + random.gamma(2, 0.05, count) + 5 * (random.random(count) < 0.01)


@pytest.mark.parametrize("cold", [5, 20, 60])
def test_warm_is_where_times_stop_falling(cold: int) -> None:
    times = noisy(400)
    times[:cold] += np.linspace(30, 3, cold)
    found = warm_from(list(times))
    assert found is not None
    assert cold - 5 <= found <= cold + 10


def test_a_model_that_is_warm_at_once_loses_next_to_nothing() -> None:
    found = [warm_from(list(noisy(200, seed))) for seed in range(20)]
    assert sum(index is not None and index <= 50 for index in found) >= 18


def test_too_few_times_and_times_that_go_on_falling_are_not_warm() -> None:
    assert warm_from([]) is None
    assert warm_from([5.0] * 19) is None
    assert warm_from(list(np.linspace(50, 5, 200))) is None
    assert warm_from([5.0] * 100) == 0


def test_percentiles_are_exact() -> None:
    assert Spread.of(range(1, 101)) == Spread(100, 50.5, 90.1, 95.05, 99.01, 100)
    assert Spread.of([7.0]) == Spread(1, 7, 7, 7, 7, 7)


CALM: dict[str, Any] = {"others": 0.02, "stolen": 0.0, "throttled": (), "hotter_c": 1.0}


@pytest.mark.parametrize(
    ("rounds", "change", "says"),
    [
        ([[5.0] * 100, [5.4] * 100], {}, "the machine is noisy: the rounds differ by 8 %"),
        (
            [[5.0] * 50 + [5.5] * 50],
            {"hotter_c": 12.0},
            "the median changed by 10 % .*; the processor became 12 degrees warmer",
        ),
        ([[5.0] * 50 + [5.5] * 50], {}, "the median changed by 10 % between the two halves of a round$"),
        ([[5.0] * 100], {"others": 0.8}, "other processes kept 0.8 cores busy"),
        ([[5.0] * 100], {"stolen": 0.3}, "the host of this virtual machine took 30 % of a core"),
        ([[5.0] * 100], {"throttled": ("under_voltage",)}, "the firmware reported under_voltage"),
    ],
)
def test_what_speaks_against_a_measurement_is_said(
    rounds: list[list[float]], change: dict[str, Any], says: str
) -> None:
    assert disturbances([[5.0] * 100, [5.2] * 100], **CALM) == []
    (note,) = disturbances(rounds, **{**CALM, **change})
    assert re.search(says, note), note


def test_operations_add_up_and_noise_is_nobodys() -> None:
    kinds = [("CONV_2D", (1, 4)), ("ADD", (1, 4)), ("SOFTMAX", (1, 4))]
    assert [(one.kind, one.added_ms, one.share) for one in shares(kinds, [1.0, 0.9, 2.0])] == [
        ("CONV_2D", 1.0, 0.5),
        ("ADD", 0.0, 0.0),
        ("SOFTMAX", 1.0, 0.5),
    ]
    assert shares([], []) == ()


def test_drift_is_that_of_medians() -> None:
    assert drift([1.0]) == 0
    assert drift([5.0] * 99 + [500.0]) == 0
    assert drift([6.0] * 50 + [5.0] * 50) == pytest.approx(0.2)


def test_a_raspberry_pi_is_described_from_its_own_files(tmp_path: Path) -> None:
    for name, text in {
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "proc/meminfo": "MemTotal:        8000000 kB\n",
        "etc/os-release": 'NAME=x\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n',
        "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "ondemand\n",
        "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "2400000\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    machine = describe(tmp_path)
    assert (machine.model, machine.cpu, machine.memory_mb) == ("Raspberry Pi 5 Model B Rev 1.0", None, 8192.0)
    assert (machine.os, machine.governor) == ("Debian GNU/Linux 13 (trixie)", "ondemand")
    assert (clock_mhz(tmp_path), clock_mhz(tmp_path / "none")) == (2400.0, None)


def test_energy_is_what_the_processors_counter_went_on(tmp_path: Path) -> None:
    counter = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
    counter.parent.mkdir(parents=True)
    for after, joules in (("4000000", 2.5), ("1400000", None)):  # the second wrapped meanwhile
        counter.write_text("1500000\n")
        with EnergyMeter(tmp_path) as meter:
            counter.write_text(after)
        assert meter.joules == joules


def test_energy_of_a_raspberry_pi_5_is_its_rails_power_over_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "vcgencmd"
    program.write_text(
        "#!/bin/sh\n[ $1 = pmic_read_adc ] || exit 1\ncat <<'END'\n"
        "   3V3_SYS_A current(1)=0.50000000A\n     VDD_CORE_A current(7)=2.00000000A\n"
        "     3V3_SYS_V volt(9)=3.00000000V\n   VDD_CORE_V volt(15)=0.75000000V\n"
        "     EXT5V_V volt(24)=5.10000000V\nEND\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert pmic_watts() == pytest.approx(3.0)  # 1.5 each; the supply's voltage has no current beside it
    start = time.monotonic()
    with EnergyMeter(tmp_path) as meter:
        began = time.monotonic()
        time.sleep(1.3)
        inside_s = time.monotonic() - began
    outside_s = time.monotonic() - start
    assert 0.9 * 3.0 * inside_s <= (meter.joules or 0) <= 1.1 * 3.0 * outside_s
    program.write_text("#!/bin/sh\necho 'error=1 error_msg=\"Command not registered\"'\n")  # a Raspberry Pi 4
    with EnergyMeter(tmp_path) as meter:
        pass
    assert meter.joules is None


# --- real ones ---


@pytest.fixture(scope="module")
def report_file(edgeloop: Run, bundle_file: Path, video_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "report.json"
    ran = edgeloop("bench", bundle_file, *QUICK, "--sustained", 2, "--camera", video_file, "--profile", "--json", path)
    assert (ran.code, ran.err) == (0, "")
    assert "cold start" in ran.out
    return path


@pytest.fixture(scope="module")
def report(report_file: Path) -> Report:
    return load(report_file)


def test_a_report_holds_what_its_schema_says(report_file: Path) -> None:
    schema = json.loads((ROOT / "docs/schemas/bench.json").read_text())
    jsonschema.validate(json.loads(report_file.read_text()), schema)


def test_a_report_is_of_this_bundle_on_this_machine_and_adds_up(report: Report, bundle_file: Path) -> None:
    from edge_agent.bundle import open_bundle

    assert report.complete
    (subject,), (steady,) = report.bundles, report.steady
    assert subject.digest == steady.bundle == open_bundle(bundle_file).digest
    assert (subject.kind, subject.input) == ("uint8", (1, IMAGE_SIZE, IMAGE_SIZE, 3))
    assert 0.3 < (subject.accuracy or 0) <= 1
    assert report.machine.hostname == os.uname().nodename
    assert (steady.threads, steady.delegate, len(steady.rounds_p50_ms)) == (1, None, 2)
    invoke = steady.invoke
    assert 0 < invoke.p50 <= invoke.p90 <= invoke.p95 <= invoke.p99 <= invoke.max
    assert invoke.count >= 200
    assert min(steady.rounds_p50_ms) <= invoke.p50 <= max(steady.rounds_p50_ms)
    start = steady.start
    parts = (start.process_ms, start.imports_ms, start.bundle_ms, start.interpreter_ms, start.first_inference_ms)
    assert sum(parts) == pytest.approx(start.total_ms, abs=0.01)
    assert all(part > 0 for part in parts)
    assert steady.stages is not None
    # The JPEG is decoded, and the same model runs in the frame's way as alone.
    assert steady.stages.decode.p50 > steady.stages.decide.p50 > 0
    assert 0.1 < steady.stages.invoke.p50 / invoke.p50 < 10
    assert 40 < steady.memory_mb < 400

    (sustained,) = report.sustained
    at_s = [second.at_s for second in sustained.seconds]
    assert at_s == sorted(set(at_s))
    assert at_s[0] < 1
    assert all(second.count > 0 for second in sustained.seconds)
    assert sustained.slowdown == pytest.approx(sustained.sustained_p50_ms / sustained.burst_p50_ms, rel=1e-3)
    (profile,) = report.profiles
    assert sum(operation.share for operation in profile.operations) == pytest.approx(1, abs=0.01)
    assert all(operation.added_ms >= 0 for operation in profile.operations)
    # As many as the small network has; and it ends with the classes' scores.
    kinds = [operation.kind for operation in profile.operations]
    assert (kinds.count("DEPTHWISE_CONV_2D"), profile.operations[-1].output) == (2, (1, 3))
    (seen,) = report.end_to_end
    # The video plays at its own speed, or as fast as this machine can.
    assert 0 < seen.captured_per_s < 30
    assert seen.capture_to_publish_p50_ms <= seen.capture_to_publish_p99_ms


@pytest.mark.long
def test_bundles_stand_side_by_side_and_reports_are_compared(
    edgeloop: Run, bundle_file: Path, report_file: Path, report: Report, tmp_path: Path
) -> None:
    other, path = repacked(bundle_file, tmp_path / "other.edgeloop", version="9"), tmp_path / "two.json"
    ran = edgeloop("bench", "--threads", "1,2", "--seconds", 0.2, "--rounds", 1, bundle_file, other, "--json", path)
    assert ran.code == 0, ran.err
    assert [(one.bundle, one.threads) for one in load(path).steady] == [
        (digest, threads) for digest in (bundle.digest for bundle in load(path).bundles) for threads in (1, 2)
    ]
    rows = [line.split() for line in ran.out.splitlines() if line.startswith("ground ") and "thread" not in line]
    assert [row[:4] for row in rows] == [
        ["ground", version, "uint8", threads] for version in ("1.2", "9") for threads in ("1", "2")
    ]
    assert rows[0][5] == "1.00"

    elsewhere = json.loads(report_file.read_text())
    elsewhere["machine"]["hostname"] = "pi5"
    elsewhere["steady"][0]["invoke"]["p50"] = 3 * report.steady[0].invoke.p50
    (tmp_path / "pi5.json").write_text(json.dumps(elsewhere))
    ran = edgeloop("bench", "compare", report_file, tmp_path / "pi5.json")
    assert ran.code == 0, ran.err
    row = next(line for line in ran.out.splitlines() if line.startswith("pi5 "))
    assert " 3.00 " in row


def test_the_page_shows_every_report_and_trusts_none(edgeloop: Run, report_file: Path, tmp_path: Path) -> None:
    hostile = json.loads(report_file.read_text())
    hostile["machine"]["hostname"] = "<script>alert(1)</script>"
    hostile["bundles"][0] |= {"name": "$x^{2$<b>", "accuracy": 0.5}
    hostile["steady"][0]["notes"] = ["the machine is noisy"]
    hostile["steady"].append({**hostile["steady"][0], "threads": 2})
    hostile |= {"failed": [{"what": "round 2", "reason": "<i>died</i>"}], "complete": False}
    (tmp_path / "hostile.json").write_text(json.dumps(hostile))
    out = tmp_path / "latency.html"
    ran = edgeloop("bench", "report", report_file, tmp_path / "hostile.json", "--out", out)
    assert (ran.code, ran.out) == (0, f"{out}\n"), ran.err
    html = out.read_text()
    # Ranges, distributions, threads, accuracy; and each machine's sustained second by second.
    assert html.count("<svg ") == 6
    assert "<script" not in html
    assert "<b>" not in html
    assert "<i>died" not in html
    assert "$x^{2$&lt;b&gt; 1.2 uint8" in html
    assert "B: the machine is noisy" in html
    assert "Incomplete." in html
    assert not re.search(r"(src|href)=\"(?!#)|url\((?!#)", html)
    nothing = {**hostile, "steady": [], "sustained": [], "end_to_end": []}
    (tmp_path / "nothing.json").write_text(json.dumps(nothing))
    assert edgeloop("bench", "report", tmp_path / "nothing.json", "--out", out).code == 0
    assert "Nothing could be measured" in out.read_text()


@pytest.mark.slow
def test_what_cannot_be_measured_is_named_and_the_rest_is_kept(
    edgeloop: Run, bundle_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    options = ("--delegate", "libnone.so", "--threads", "1,64", "--seconds", 0.2, "--rounds", 1, "--json", path)
    ran = edgeloop("bench", bundle_file, *options)
    assert ran.code == 1
    assert f"64 threads on {len(os.sched_getaffinity(0))} cores" in ran.err
    assert "libnone.so: no usable delegate" in ran.err
    kept = load(path)
    assert not kept.complete
    assert [(one.threads, one.delegate) for one in kept.steady] == [(1, None), (64, None)]
    assert any("64 threads on" in note for note in kept.steady[1].notes)
    assert {failure.what for failure in kept.failed} == {
        f"round 1: ground 1.2, {threads}, libnone.so" for threads in ("1 thread", "64 threads")
    }


def wait_for_sustained(pid: int) -> list[str]:
    """Wait until the child has computed under sustained load for more than a second; the ids of the children."""

    def children() -> list[str]:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()

    def worked() -> bool:
        with suppress(FileNotFoundError):
            for child in children():
                if b"sustain" in Path(f"/proc/{child}/cmdline").read_bytes():
                    spent = Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
                    # Of which one or two go into the start.
                    return sum(map(int, spent)) / os.sysconf("SC_CLK_TCK") > 5
        return False

    wait_until(worked, 60, "seconds of sustained load")
    return children()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "the measuring process dies"])
def test_broken_off_it_keeps_what_it_has_and_says_that_it_is_not_all(
    bundle_file: Path, tmp_path: Path, how: signal.Signals
) -> None:
    path = tmp_path / "report.json"
    options = ["--threads", "1", "--seconds", "0.2", "--rounds", "1", "--sustained", "60", "--json", str(path)]
    running = subprocess.Popen(
        interruptible([sys.executable, "-m", "edge_agent.cli", "bench", str(bundle_file), *options]),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_until(lambda: path.exists() and len(load(path).steady) == 1, 60, "the first round")
        children = wait_for_sustained(running.pid)
        if how is signal.SIGKILL:
            os.kill(int(children[0]), how)
        else:
            os.killpg(running.pid, how)
        out, said = running.communicate(timeout=120)
    finally:
        running.kill()
        running.wait(60)
    assert running.returncode == 1, said
    kept = load(path)
    assert not kept.complete
    assert len(kept.sustained[0].seconds) >= 1
    assert len(kept.failed) == 1
    assert "(incomplete)" in out
    wait_until(lambda: not Path(f"/proc/{children[0]}").exists(), 10, "the child to end")


def test_bad_input_ends_in_one_line(edgeloop: Run, bundle_file: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.edgeloop"
    data = bytearray(bundle_file.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    ran = edgeloop("bench", damaged)
    assert (ran.code, "damaged.edgeloop" in ran.line) == (1, True)
    assert edgeloop("bench", tmp_path / "none.edgeloop").code == 2
    assert edgeloop("bench", bundle_file, "--threads", "0").code == 2
    assert "no such folder" in edgeloop("bench", bundle_file, "--json", tmp_path / "no/report.json").line
    for name, content in {"text": b"hello", "old": b'{"v": 0}', "binary": b"\xff\x00"}.items():
        (tmp_path / name).write_bytes(content)
        assert "expected a report of edgeloop bench" in edgeloop("bench", "compare", tmp_path / name).line
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.json")
    ran = edgeloop("bench", bundle_file, *QUICK, "--camera", tmp_path / "none.avi")
    assert ran.code == 1
    assert "none.avi" in ran.err
