"""Writing files so that a crash or a power cut leaves the old one or the new one, never half of one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast


@contextmanager
def replacing(path: str | os.PathLike[str], *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """A new file that takes ``path``'s place when the block ends, and vanishes when the block raises.

    The bytes reach the disk before the rename, and the rename before the block's caller goes on.

    Args:
        path: the final name; its directory must exist.
        mode: permission bits of the new file, whatever the umask.
    """
    path = Path(path)
    with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", suffix=".part", dir=path.parent, delete=False) as file:
        try:
            yield cast("BinaryIO", file)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the folder's entries, such as a new file's name, are on the disk."""
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file that is never written to a second name: a hard link, or a copy on another disk.

    A name that is taken keeps what it has. Raises OSError.
    """
    try:
        os.link(source.resolve(), target)
    except FileExistsError:
        return
    except OSError:
        with open(source, "rb") as original, replacing(target) as copy:
            shutil.copyfileobj(original, copy)
