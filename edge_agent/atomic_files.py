"""Atomic file writes: after a crash or a power cut, a file has either its old or its new content, never a part."""

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
    """Open a new file that replaces ``path`` at the end of the block, or is removed if the block raises.

    The content is flushed to the disk before the rename, and the rename before the context manager returns.

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
    """Flush the entries of a folder, such as the name of a new file, to the disk."""
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a read-only file a second name: a hard link, or a copy if the target is on another disk.

    An existing target is kept. Raises OSError.
    """
    try:
        os.link(source.resolve(), target)
    except FileExistsError:
        return
    except OSError:
        with open(source, "rb") as original, replacing(target) as copy:
            shutil.copyfileobj(original, copy)
