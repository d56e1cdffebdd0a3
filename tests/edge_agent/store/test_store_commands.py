"""`edgeloop install`, `rollback` and `status`, as a user runs them."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.store.model_store import ModelStore

from ...conftest import Ran, Run
from ...support.bundles import repacked
from ...support.stores import assert_sound, version_of

COMMANDS = ("install", "rollback", "status")


@pytest.fixture(scope="module")
def versions(bundle_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("versions")
    return {number: repacked(bundle_file, folder / f"ground-{number}.edgeloop", version=number) for number in "12"}


def test_a_model_is_installed_replaced_and_rolled_back(
    edgeloop: Run, versions: dict[str, Path], tmp_path: Path
) -> None:
    state = tmp_path / "var/lib/edgeloop"
    ran = edgeloop("status", "--root", tmp_path)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"no model is installed in {state}; install one with: edgeloop install BUNDLE\n"
    ran = edgeloop("rollback", "--root", tmp_path)
    assert ran.code == 1
    assert "no model is installed" in ran.line

    ran = edgeloop("install", versions["1"], "--root", tmp_path)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("ground 1 (")
    assert "canary images correct" in ran.out
    assert ran.out.endswith("now current\n")
    ran = edgeloop("install", versions["2"], "--root", tmp_path, "--no-activate")
    assert ran.out.endswith("stored\n")
    assert version_of(ModelStore(state).current()) == "1"
    value = json.loads(edgeloop("install", versions["2"], "--root", tmp_path, "--json").out)
    assert (value["version"], value["status"], value["path"]) == ("2", "probation", str(Path(value["path"])))
    assert value["proof"]["reasons"] == []

    ran = edgeloop("rollback", "--root", tmp_path, "--reason", "wrong birds")
    assert ran.code == 0
    assert ran.out.startswith("ground 1 (")
    assert "current again, instead of ground 2 (" in ran.out
    ran = edgeloop("install", versions["2"], "--root", tmp_path)
    assert ran.code == 1
    assert "wrong birds" in ran.line
    ran = edgeloop("status", "--root", tmp_path)
    assert [line.partition(")")[2] for line in ran.out.splitlines() if not line.startswith(" ")] == [
        ": previous",
        ": current",
    ]
    assert "wrong birds" in ran.out
    status = json.loads(edgeloop("status", "--root", tmp_path, "--json").out)
    assert status["current"]["version"] == "1"
    assert status["failures"][0]["reason"] == "wrong birds"
    assert edgeloop("install", versions["2"], "--root", tmp_path, "--force").code == 0
    assert_sound(state)


def test_agent_yaml_says_where_the_store_is_and_who_may_sign(
    edgeloop: Run, versions: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "etc/edgeloop").mkdir(parents=True)
    config = tmp_path / "etc/edgeloop/agent.yaml"
    config.write_text("device: d\ncameras: {c: {source: 0}}\nstate: /srv/models\nthreads: 1\n")
    assert edgeloop("install", versions["1"], "--root", tmp_path).code == 0
    assert version_of(ModelStore(tmp_path / "srv/models").current()) == "1"
    (tmp_path / "own.yaml").write_text("device: d\ncameras: {c: {source: 0}}\nstate: own\nallowed_signers: signers\n")
    (tmp_path / "signers").write_text("")
    ran = edgeloop("install", versions["1"], "--config", tmp_path / "own.yaml")
    assert ran.code == 1
    assert "it is not signed" in ran.line
    assert not (tmp_path / "own").exists()
    config.write_text("device: d\ncameras: {c: {source: 0}}\nstat: x\n")
    ran = edgeloop("status", "--root", tmp_path)
    assert ran.code == 2
    assert "did you mean 'state'" in ran.line
    assert edgeloop("status", "--config", tmp_path / "none.yaml").code == 2


def test_without_agent_yaml_the_usual_allowed_signers_hold(
    edgeloop: Run, versions: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "etc/edgeloop").mkdir(parents=True)
    (tmp_path / "etc/edgeloop/allowed_signers").write_text("")
    ran = edgeloop("install", versions["1"], "--root", tmp_path)
    assert ran.code == 1
    assert "it is not signed" in ran.line


def test_what_is_refused_is_refused_in_a_line(edgeloop: Run, bundle_file: Path, tmp_path: Path) -> None:
    (tmp_path / "text.edgeloop").write_text("text")
    bare = repacked(bundle_file, tmp_path / "bare.edgeloop", expected=[])
    for bundle in (tmp_path / "text.edgeloop", tmp_path / "none.edgeloop", bare):
        ran = edgeloop("install", bundle, "--root", tmp_path)
        assert ran.code == 1
        assert str(bundle) in ran.line
        assert ran.out == ""
    assert edgeloop("install").code == 2
    assert ModelStore(tmp_path / "var/lib/edgeloop").status().installed == ()


@pytest.mark.needs("cc")
def test_a_proof_that_takes_long_shows_its_progress_on_a_terminal(versions: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "etc/edgeloop").mkdir(parents=True)
    (tmp_path / "d.c").write_text("#include <unistd.h>\nvoid *tflite_plugin_create_delegate() { sleep(2); return 0; }")
    library = tmp_path / "slow.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "d.c")], check=True)
    (tmp_path / "etc/edgeloop/agent.yaml").write_text(
        f"device: d\ncameras: {{c: {{source: 0}}}}\ndelegate: {library}\nstate: s\n"
    )
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "edge_agent.cli", "install", versions["1"], "--root", tmp_path],
        stdout=subprocess.PIPE,
        stderr=theirs,
        check=False,
    )
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert done.returncode == 0, shown
    assert "canary images" in shown
    assert "100%" in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_it_does(edgeloop: Run, command: str) -> None:
    ran: Ran = edgeloop(command, "--help")
    assert ran.code == 0
    assert "--root" in ran.out
    assert "--config" in ran.out
