"""Atomic file writes.

After a crash or a power cut, a file contains either all of its old content or all of its new content, never a part.
"""

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
    """Open a new file for writing. At the end of the block it replaces ``path``; if the block raises, it is removed.

    The content is flushed to the disk before the file is renamed. The rename is flushed to the disk before the
    context manager returns.

    Args:
        path: final name of the file; its directory must exist.
        mode: permission bits of the new file, regardless of the umask.
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
    """Flush the directory entries of a folder, such as the name of a new file, to the disk."""
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def link_or_copy(source: Path, target: Path) -> None:
    """Make a read-only file available as ``target`` too: as a hard link if possible, otherwise as a copy.

    A copy is needed if, for example, the target is on another disk. An existing target is kept.

    Raises:
        OSError: the target cannot be written.
    """
    try:
        os.link(source.resolve(), target)
    except FileExistsError:
        return
    except OSError:
        with open(source, "rb") as original, replacing(target) as copy:
            shutil.copyfileobj(original, copy)
