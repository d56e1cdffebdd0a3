"""Reads and writes the boot partition of a card, which is mounted or inside an image."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from edge_agent.atomic_files import sync_folder
from edge_agent.errors import ConfigError

_ENVIRONMENT = {"MTOOLSRC": os.devnull, "MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C.UTF-8"}
_ABSENT = "mtools is needed to write into images but is not installed; on Debian: sudo apt install mtools"


class Boot(Protocol):
    """A boot partition. The name of a file is its path relative to the top folder, with slashes."""

    def names(self) -> set[str]:
        """Return the names of files and folders at the top."""

    def read(self, name: str) -> bytes | None:
        """Read a file; None if it does not exist."""

    def free(self) -> int:
        """Return the free space in bytes."""

    def write(self, files: Mapping[str, bytes | Path]) -> None:
        """Write files in the given order, replacing each atomically."""

    def remove_tree(self, name: str) -> None:
        """Remove a folder if it exists."""


class Mounted:
    """A mounted boot partition.

    Args:
        folder: mount point.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> set[str]:
        """Return the names of files and folders at the top."""
        return {path.name for path in self._folder.iterdir()}

    def read(self, name: str) -> bytes | None:
        """Read a file; None if it does not exist."""
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def free(self) -> int:
        """Return the free space in bytes."""
        return shutil.disk_usage(self._folder).free

    def write(self, files: Mapping[str, bytes | Path]) -> None:
        """Write files in the given order, replacing each atomically."""
        try:
            for name, content in files.items():
                self._write(self._folder / name, content)
        except OSError as error:
            raise ConfigError(
                f"{self._folder}: {error.strerror or error}; is the card still inserted, and can you write to it?"
            ) from error

    def _write(self, path: Path, content: bytes | Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        with open(part, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.read_bytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        sync_folder(path.parent)

    def remove_tree(self, name: str) -> None:
        """Remove a folder if it exists."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self._folder / name)


class InImage:
    """A FAT file system inside a file. It is accessed with mtools, which need neither a mount nor root access.

    Args:
        file: the image or its beginning.
        start: offset of the partition in the file, in bytes.
    """

    def __init__(self, file: Path, start: int) -> None:
        self._place = f"{file}@@{start}"

    def names(self) -> set[str]:
        """Return the names of files and folders at the top."""
        listed = self._run("mdir", "-b", "-a", "::/")
        return {line.removeprefix("::/").rstrip("/") for line in listed.decode(errors="replace").splitlines() if line}

    def read(self, name: str) -> bytes | None:
        """Read a file at the top; None if it does not exist."""
        if name not in self.names():
            return None
        return self._run("mtype", f"::/{name}")

    def free(self) -> int:
        """Return the free space in bytes."""
        found = re.search(rb"([0-9][0-9 ]*) bytes free", self._run("mdir", "::/"))
        return int(found[1].replace(b" ", b"")) if found else 0

    def write(self, files: Mapping[str, bytes | Path]) -> None:
        """Write files."""
        with tempfile.TemporaryDirectory(prefix="edgeloop-") as work:
            for name, content in files.items():
                path = Path(work) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, bytes):
                    path.write_bytes(content)
                else:
                    path.symlink_to(content.absolute())
            self._run("mcopy", "-s", "-o", "-Q", *(str(path) for path in sorted(Path(work).iterdir())), "::/")

    def remove_tree(self, name: str) -> None:
        """Remove a folder if it exists."""
        if name in self.names():
            self._run("mdeltree", f"::/{name}")

    def _run(self, command: str, *arguments: str) -> bytes:
        program = shutil.which(command)
        if program is None:
            raise ConfigError(_ABSENT)
        done = subprocess.run(
            [program, "-i", self._place, *arguments],
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **_ENVIRONMENT},
        )
        if done.returncode != 0:
            reason = (done.stderr.decode(errors="replace").strip().splitlines() or [f"{command} failed"])[-1]
            raise ConfigError(f"its boot partition cannot be used: {reason}; download the image again")
        return done.stdout
