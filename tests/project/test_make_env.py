"""`make demo` and `make test` on a machine whose Python does not suit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def stand_in(folder: Path, name: str, version: str) -> Path:
    """A Python that says it is of some version, and can do nothing else."""
    script = folder / name
    script.write_text(f"#!/bin/sh\necho {version}\n")
    script.chmod(0o755)
    return script


def make(folder: Path, *arguments: str, path: str) -> subprocess.CompletedProcess[str]:
    # Not what `make test PYTHON=...` hands down to a make that a test starts.
    inherited = {"PYTHON", "MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL"}
    environment = {name: value for name, value in os.environ.items() if name not in inherited} | {"PATH": path}
    command = ["/usr/bin/make", "-C", str(REPOSITORY), "demo", f"VENV={folder / 'venv'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=60)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH with the basic tools and no Python at all."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("sh", "dirname", "cat", "cksum", "rm", "printf"):
        (folder / tool).symlink_to(f"/usr/bin/{tool}" if Path(f"/usr/bin/{tool}").exists() else f"/bin/{tool}")
    return folder


@pytest.mark.parametrize("version", ["3.10", "3.14", "2.7"])
def test_a_python_too_old_or_too_new_gets_one_clear_line(tools: Path, tmp_path: Path, version: str) -> None:
    stand_in(tools, "python3", version)
    ran = make(tmp_path, path=str(tools))
    assert ran.returncode == 2
    said = [line for line in ran.stderr.splitlines() if line.startswith("edgeloop: ")]
    assert len(said) == 1
    assert f"needs Python 3.11, 3.12 or 3.13; python3 is {version}" in said[0]
    assert not (tmp_path / "venv").exists()


def test_no_python_at_all_is_said_too(tools: Path, tmp_path: Path) -> None:
    ran = make(tmp_path, path=str(tools))
    assert ran.returncode == 2
    assert "python3 is missing" in ran.stderr


def test_a_named_python_that_does_not_suit_is_refused(tools: Path, tmp_path: Path) -> None:
    wrong = stand_in(tmp_path, "python-wrong", "3.9")
    ran = make(tmp_path, f"PYTHON={wrong}", path=str(tools))
    assert ran.returncode == 2
    assert "is 3.9" in ran.stderr
    ran = make(tmp_path, "PYTHON=/no/such/python", path=str(tools))
    assert ran.returncode == 2
    assert "is not a Python" in ran.stderr


def test_a_suitable_one_is_found_behind_an_unsuitable_one(tools: Path, tmp_path: Path) -> None:
    stand_in(tools, "python3", "3.14")
    stand_in(tools, "python3.12", "3.12")  # says 3.12, but can make no environment
    ran = make(tmp_path, path=str(tools))
    assert ran.returncode == 2
    assert "python3.12 cannot make virtual environments" in ran.stderr
    assert not (tmp_path / "venv").exists()


def test_an_environment_that_is_complete_is_left_alone(tmp_path: Path) -> None:
    env = tmp_path / "venv"
    (env / "bin").mkdir(parents=True)
    (env / "bin" / "python").symlink_to(sys.executable)
    want = subprocess.run(
        "cat pyproject.toml constraints.txt | cksum",
        shell=True,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (env / ".installed-demo").write_text(want)
    ran = subprocess.run(
        [str(REPOSITORY / "scripts/make_env"), str(env), "demo"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
