"""Data sets to load, and to spoil."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.errors import DataError
from trainer.data import Dataset, load_dataset

from ...support.data_sets import (
    SPEC,
    Load,
    scene,
    write,
)


@pytest.fixture
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Load a data set through one cache of this test's own."""
    cache = tmp_path_factory.mktemp("cache")

    def loaded(root: Path, **choices: object) -> Dataset:
        return load_dataset(root, SPEC, cache=cache, **choices)  # type: ignore[arg-type]

    return loaded


@pytest.fixture
def photos(photo_folder: Path, tmp_path: Path) -> Path:
    """A copy of the photographs to spoil."""
    return Path(shutil.copytree(photo_folder, tmp_path / "data"))


@pytest.fixture
def refusal(load: Load) -> Callable[..., str]:
    """What is said when a data set is refused; always one line."""

    def said(root: Path, **choices: object) -> str:
        with pytest.raises(DataError) as caught:
            load(root, **choices)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return said


@pytest.fixture
def listing(tmp_path: Path) -> Callable[..., Path]:
    """A CSV file beside a folder of images p/0.jpg to p/19.jpg."""
    for number in range(20):
        write(tmp_path / f"p/{number}.jpg", scene(number))

    def written(*rows: str, encoding: str = "utf-8", header: str = "path,label") -> Path:
        path = tmp_path / "photos.csv"
        path.write_bytes("\n".join([header, *rows, ""]).encode(encoding))
        return path

    return written
