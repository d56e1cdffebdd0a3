"""Debian 13, with Python 3.13: the same way from a fresh machine to a model that runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from edge_agent.bench.report import load
from edge_agent.store.model_store import ModelStore

from ..conftest import Run, wait_until
from .root import Pi, debian_architecture, make_root, processes, remove_root, running

pytestmark = [pytest.mark.needs("root", "index", "ssh-keygen"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def trixie(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pi]:
    """For this machine's own processor."""
    folder = tmp_path_factory.mktemp("trixie")
    root = make_root(folder / "root", suite="trixie", architecture=debian_architecture())
    with running(root, folder / "ssh") as machine:
        yield machine
    remove_root(root)


@pytest.mark.long
def test_provision_push_roll_back_and_deprovision(
    trixie: Pi,
    edgeloop: Run,
    photo_folder: Path,
    signed_versions: dict[str, Path],
    signing_key: Path,
    tmp_path: Path,
) -> None:
    settings = tmp_path / "agent.yaml"
    settings.write_text(yaml.safe_dump({"cameras": {"door": {"source": "/srv/none.avi"}}, "threads": 1}))
    there = ("raspberrypi", "-F", trixie.ssh_config)
    provision = ("deploy", "provision", *there, "--config", settings, "--bundle", signed_versions["1"])
    ran = edgeloop(*provision, "--trust", signing_key.with_suffix(".pub"), "--dashboard")
    assert (ran.code, ran.err) == (0, "")
    assert "install bundle.edgeloop" in ran.out
    assert trixie.ssh("/opt/edgeloop/env/bin/python --version").stdout == "Python 3.13.5\n"
    assert trixie.ssh("/opt/edgeloop/env/bin/python -c 'import cv2, numpy, uvicorn'").returncode == 0
    ran = edgeloop(*provision, "--trust", signing_key.with_suffix(".pub"), "--dashboard")
    assert "raspberrypi: nothing changed\n" in ran.out
    store = ModelStore(trixie.root / "var/lib/edgeloop")
    for version in "23":
        ran = edgeloop("deploy", "push", signed_versions[version], *there, "--no-wait")
        assert f"raspberrypi: active, ground {version}" in ran.out, ran.out
    ran = edgeloop("deploy", "rollback", *there)
    assert ran.out == "raspberrypi: runs ground 2 again\n"
    current = store.current()
    assert current is not None
    assert current.version == "2"
    options = ("--threads", "1,2", "--seconds", 0.2, "--rounds", 1)
    ran = edgeloop("deploy", "bench", *there, "--out", tmp_path / "bench", *options)
    assert ran.code == 0, ran.err
    report = load(tmp_path / "bench/raspberrypi.json")
    assert f"{tmp_path}/bench/raspberrypi.json" in ran.out
    assert report.complete
    assert [(one.bundle, one.threads) for one in report.steady] == [(current.digest, 1), (current.digest, 2)]
    assert (report.machine.os, report.machine.python) == ("Debian GNU/Linux 13 (trixie)", "3.13.5")

    # A search measures what it made there, beside the model that runs and goes on running.
    ran = edgeloop(
        *("search", photo_folder, "--size", 64, "--threads", 1, "--budget-ms", 1000, "--out", tmp_path / "search"),
        *("--host", "raspberrypi", "-F", trixie.ssh_config, "--sign", signing_key, "--json"),
    )
    assert ran.code == 0, ran.err
    told = load(tmp_path / "search/bench.json")
    assert told.machine.python == "3.13.5"
    assert [one.bundle for one in told.steady] == [json.loads(ran.out)["recommended"]["digest"]]
    assert store.current() == current

    # The connection breaks during the minutes without a pause: what was measured before is kept, and marked.
    command = ["deploy", "bench", "raspberrypi", "-F", str(trixie.ssh_config), "--out", str(tmp_path / "cut")]
    command += ["--threads", "1", "--seconds", "0.2", "--rounds", "1", "--sustained", "30"]
    cut_off = subprocess.Popen(
        [sys.executable, "-m", "edge_agent.cli", *command], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    wait_until(lambda: '"do":"sustain"' in commands(trixie), 60, "sustained work")
    for pid in processes(trixie.root):
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sshd-session: pi"):
            os.kill(pid, signal.SIGKILL)
    out, said = cut_off.communicate(timeout=60)
    assert cut_off.returncode == 1
    assert "incomplete" in out
    assert "the rest: raspberrypi: the connection was lost" in said
    report = load(tmp_path / "cut/raspberrypi.json")
    assert (len(report.steady), report.complete) == (1, False)
    wait_until(lambda: "edge_agent.bench" not in commands(trixie), 60, "the benchmark to end there")

    ran = edgeloop("deploy", "deprovision", *there, "--yes")
    assert ran.code == 0, ran.err
    assert not (trixie.root / "opt/edgeloop").exists()
    assert not (trixie.root / "var/lib/edgeloop").exists()


def commands(pi: Pi) -> str:
    """Everything that runs there."""
    lines = []
    for pid in processes(pi.root):
        with suppress(OSError):
            lines.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return "\n".join(lines)
