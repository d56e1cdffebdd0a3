from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ..support.bundles import new_key, repacked
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
