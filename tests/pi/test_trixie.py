"""Debian 13, with Python 3.13: the same way from a fresh machine to a model that runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from edge_agent.store import Store

from ..conftest import Run
from .root import Pi, debian_architecture, make_root, remove_root, running

pytestmark = [pytest.mark.needs("root", "index", "ssh-keygen"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def trixie(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pi]:
    """For this machine's own processor."""
    folder = tmp_path_factory.mktemp("trixie")
    root = make_root(folder / "root", suite="trixie", architecture=debian_architecture())
    with running(root, folder / "ssh") as machine:
        yield machine
    remove_root(root)


def test_provision_push_roll_back_and_deprovision(
    trixie: Pi, edgeloop: Run, signed_versions: dict[str, Path], signing_key: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "agent.yaml"
    settings.write_text(yaml.safe_dump({"cameras": {"door": {"source": "/srv/none.avi"}}, "threads": 1}))
    there = ("raspberrypi", "-F", trixie.ssh_config)
    provision = ("deploy", "provision", *there, "--config", settings, "--bundle", signed_versions["1"])
    ran = edgeloop(*provision, "--trust", signing_key.with_suffix(".pub"), "--page")
    assert (ran.code, ran.err) == (0, "")
    assert "install bundle.edgeloop" in ran.out
    assert trixie.ssh("/opt/edgeloop/env/bin/python --version").stdout == "Python 3.13.5\n"
    assert trixie.ssh("/opt/edgeloop/env/bin/python -c 'import cv2, numpy, uvicorn'").returncode == 0
    ran = edgeloop(*provision, "--trust", signing_key.with_suffix(".pub"), "--page")
    assert "raspberrypi: nothing changed\n" in ran.out
    store = Store(trixie.root / "var/lib/edgeloop")
    for version in "23":
        ran = edgeloop("deploy", "push", signed_versions[version], *there, "--no-wait")
        assert f"raspberrypi: active, ground {version}" in ran.out, ran.out
    ran = edgeloop("deploy", "rollback", *there)
    assert ran.out == "raspberrypi: runs ground 2 again\n"
    current = store.current()
    assert current is not None
    assert current.version == "2"
    ran = edgeloop("deploy", "deprovision", *there, "--yes")
    assert ran.code == 0, ran.err
    assert not (trixie.root / "opt/edgeloop").exists()
    assert not (trixie.root / "var/lib/edgeloop").exists()
