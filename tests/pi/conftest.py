from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_agent.preprocess import Pixels

from ..test_signature import new_key
from ..test_store import repacked
from .root import Pi, debian_architecture, make_root, remove_root, running


@pytest.fixture(scope="session")
def pi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pi]:
    """A Raspberry Pi as it comes: nothing of edgeloop is on it."""
    folder = tmp_path_factory.mktemp("pi")
    root = make_root(folder / "root")
    with running(root, folder / "ssh") as machine:
        yield machine
    remove_root(root)


@pytest.fixture(scope="session")
def near(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pi]:
    """The same Debian for this machine's own processor, where no instruction set matters: twenty times as fast."""
    folder = tmp_path_factory.mktemp("near")
    root = make_root(folder / "root", architecture=debian_architecture())
    with running(root, folder / "ssh") as machine:
        yield machine
    remove_root(root)


@pytest.fixture(scope="session")
def signing_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_key(tmp_path_factory.mktemp("signing") / "owner")


@pytest.fixture(scope="session")
def signed_versions(bundle_file: Path, signing_key: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three bundles that differ in their version alone, signed by the owner."""
    folder = tmp_path_factory.mktemp("signed-versions")
    return {
        number: repacked(bundle_file, folder / f"ground-{number}.edgeloop", version=number, key=signing_key)
        for number in "123"
    }


@pytest.fixture(scope="session")
def fast_video(areas: dict[str, dict[str, Pixels]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Brick for a second, then stars, at 60 frames a second: probation is 500 frames."""
    path = tmp_path_factory.mktemp("video") / "fast.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 60, (160, 120))
    for number in range(120):
        area = areas["brick" if number < 60 else "stars"]["video"]
        shift = number % 60 // 2
        writer.write(np.ascontiguousarray(area[shift : shift + 120, :160]))
    writer.release()
    return path
