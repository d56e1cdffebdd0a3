"""Annotations of frames: an append-only log with one line of JSON per annotation.

The log is the file `labels.jsonl` next to the frames. An annotation is on the disk before it is confirmed. Several
processes may append to one log, and each reads what the others wrote. The last line about a frame counts, and no line
is ever removed. Invalid lines, for example after editing by hand, are reported and skipped, and stay in the file.
"""

from __future__ import annotations

import fcntl
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edge_agent.atomic_files import sync_folder
from edge_agent.bundle.archive import problems_of_labels
from edge_agent.errors import DataError

LOG = "labels.jsonl"
FORMAT = 1
MAX_BYTES = 2**30
_Hash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
_Name = Annotated[str, msgspec.Meta(max_length=100)]


class Annotation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the log.

    Attributes:
        v: version of the format.
        sha256: SHA-256 of the frame's image file.
        verdict: `label`: the frame shows the class ``label``; `none`: it shows none of the classes; `skip`: leave it
            out; `open`: an earlier annotation is withdrawn.
        label: class name; only with the verdict `label`.
        by: name of the annotator.
        at: time of the annotation, RFC 3339 in UTC.
    """

    v: Annotated[int, msgspec.Meta(ge=1, le=FORMAT)] = FORMAT
    sha256: _Hash
    verdict: Literal["label", "none", "skip", "open"]
    label: str = ""
    by: _Name = ""
    at: _Name = ""

    def __post_init__(self) -> None:
        if self.verdict == "label":
            # The check needs two different classes.
            problems = problems_of_labels((self.label, f"not {self.label}"[:10]))
            if problems:
                raise ValueError(f"label: {problems[0]}")
        elif self.label:
            raise ValueError(f"a label is only valid with the verdict 'label', not {self.verdict!r}")


_decode = msgspec.json.Decoder(Annotation).decode
_encode = msgspec.json.Encoder().encode


def now() -> str:
    """Return the current time in the format of `Annotation.at`."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


class Annotations:
    """The annotation log of a folder. Not thread-safe.

    Attributes:
        latest: latest annotation of each frame, by the frame's SHA-256; includes the verdict `open`.
        problems: one message for each line that cannot be used.
        count: number of annotations read so far.
        generation: number of times the log was read from its start because the file was new or replaced.
    """

    def __init__(self, folder: Path) -> None:
        """Open the log of a folder and read the existing annotations.

        Raises:
            DataError: the log cannot be read.
        """
        self.path = folder / LOG
        self._inode = self.generation = -1
        self._forget()
        self.refresh()

    def refresh(self) -> list[Annotation]:
        """Read the annotations appended since the last call, or all of them if the file was replaced or truncated.

        Raises:
            DataError: the log cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._read:
                    self._forget()
                self._inode = status.st_ino
                if status.st_size > MAX_BYTES:
                    raise DataError(f"{self.path}: over {MAX_BYTES} bytes, too large for a log of annotations")
                file.seek(self._read)
                data = file.read(status.st_size - self._read)
        except FileNotFoundError:
            self._forget()
            return []
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from error
        # A last line without line end is still being written, or was never finished.
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        return self._parse(whole.splitlines())

    def add(self, annotations: Sequence[Annotation]) -> list[Annotation]:
        """Append annotations to the log and wait until they are on the disk.

        Returns:
            These annotations, after any that other processes have appended since the last call.

        Raises:
            OSError: the disk is full or read-only; nothing was appended.
            DataError: the log cannot be read.
        """
        lines = b"".join(_encode(annotation) + b"\n" for annotation in annotations)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            end = os.fstat(handle).st_size
            try:
                # An unfinished last line is kept as a separate line.
                if end and os.pread(handle, 1, end - 1) != b"\n":
                    lines = b"\n" + lines
                done = 0
                while done < len(lines):
                    done += os.pwrite(handle, lines[done:], end + done)
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, end)
                raise
            if not end:
                sync_folder(self.path.parent)
        finally:
            os.close(handle)
        return self.refresh()

    @property
    def disputed(self) -> dict[str, list[Annotation]]:
        """Frames that people annotated differently, by SHA-256, with the latest annotation of each person."""
        return {
            sha256: list(people.values())
            for sha256, people in self._by_person.items()
            if len({(annotation.verdict, annotation.label) for annotation in people.values()}) > 1
        }

    def _forget(self) -> None:
        self.latest: dict[str, Annotation] = {}
        self.problems: list[str] = []
        self.count = 0
        self.generation += 1
        self._by_person: dict[str, dict[str, Annotation]] = defaultdict(dict)
        self._read = self._line = 0

    def _parse(self, lines: Iterable[bytes]) -> list[Annotation]:
        parsed = []
        for line in lines:
            self._line += 1
            if not line.strip():
                continue
            try:
                annotation = _decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                self.problems.append(
                    f"{self.path}, line {self._line}: {error}; the line is skipped, correct or remove it"
                )
                continue
            parsed.append(annotation)
            self.latest[annotation.sha256] = annotation
            people = self._by_person[annotation.sha256]
            people.pop(annotation.by, None)
            if annotation.verdict == "open":
                people.clear()
            else:
                people[annotation.by] = annotation
        self.count += len(parsed)
        return parsed
