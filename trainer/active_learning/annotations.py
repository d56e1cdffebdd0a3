"""What people decided about frames: a log that is only ever appended to, one line of JSON a decision.

It lies beside the frames as `labels.jsonl`. A decision is on the disk before anybody is told that it is made. Several
processes may append to one log, and each takes in what the others wrote. The last line about a frame counts; none is
ever lost. A line that somebody changed by hand into something else is named and passed over, and stays as it is.
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
MOST_BYTES = 2**30
_Hash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
_Name = Annotated[str, msgspec.Meta(max_length=100)]


class Annotation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the log.

    Attributes:
        v: version of the format.
        sha256: of the frame's image.
        verdict: it shows ``label``; it shows `none` of the classes; it is to be left out (`skip`); or it is open again.
        label: the class, with the verdict `label` alone.
        by: who decided.
        at: when, RFC 3339 in UTC.
    """

    v: Annotated[int, msgspec.Meta(ge=1, le=FORMAT)] = FORMAT
    sha256: _Hash
    verdict: Literal["label", "none", "skip", "open"]
    label: str = ""
    by: _Name = ""
    at: _Name = ""

    def __post_init__(self) -> None:
        if self.verdict == "label":
            # Whether two classes are the same is no matter of one name.
            problems = problems_of_labels((self.label, f"not {self.label}"[:10]))
            if problems:
                raise ValueError(f"label: {problems[0]}")
        elif self.label:
            raise ValueError(f"a label beside the verdict {self.verdict!r}")


_decode = msgspec.json.Decoder(Annotation).decode
_encode = msgspec.json.Encoder().encode


def now() -> str:
    """The time as decisions carry it."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


class Annotations:
    """A folder's log. Not for several threads at once.

    Attributes:
        latest: the decision that counts, by the hash of the frame; `open` ones included.
        problems: lines that cannot be used, and why.
        count: decisions read so far.
        generation: how often the log was begun anew, because somebody replaced it.
    """

    def __init__(self, folder: Path) -> None:
        """Name the log and read what is there.

        Raises:
            DataError: it cannot be read.
        """
        self.path = folder / LOG
        self._inode = self.generation = -1
        self._forget()
        self.refresh()

    def refresh(self) -> list[Annotation]:
        """Take in what was appended since; all of it where the file was replaced or cut.

        Raises:
            DataError: the log cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._read:
                    self._forget()
                self._inode = status.st_ino
                if status.st_size > MOST_BYTES:
                    raise DataError(f"{self.path}: over {MOST_BYTES} bytes; no log of decisions is that long")
                file.seek(self._read)
                data = file.read(status.st_size - self._read)
        except FileNotFoundError:
            self._forget()
            return []
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from error
        # What does not end yet is being written, or was not finished.
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        return self._take(whole.splitlines())

    def add(self, decisions: Sequence[Annotation]) -> list[Annotation]:
        """Append, and return once it is on the disk; with what others appended before.

        Raises:
            OSError: the disk does not take it. Nothing is appended then.
            DataError: the log cannot be read.
        """
        lines = b"".join(_encode(decision) + b"\n" for decision in decisions)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            end = os.fstat(handle).st_size
            try:
                # A line that was not finished stays, as a line of its own.
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
        """Frames that several people decided differently: the last decision of each."""
        return {
            sha256: list(people.values())
            for sha256, people in self._by_person.items()
            if len({(one.verdict, one.label) for one in people.values()}) > 1
        }

    def _forget(self) -> None:
        self.latest: dict[str, Annotation] = {}
        self.problems: list[str] = []
        self.count = 0
        self.generation += 1
        self._by_person: dict[str, dict[str, Annotation]] = defaultdict(dict)
        self._read = self._line = 0

    def _take(self, lines: Iterable[bytes]) -> list[Annotation]:
        taken = []
        for line in lines:
            self._line += 1
            if not line.strip():
                continue
            try:
                decision = _decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                self.problems.append(f"{self.path}, line {self._line}: {error}; it is left out, correct or remove it")
                continue
            taken.append(decision)
            self.latest[decision.sha256] = decision
            people = self._by_person[decision.sha256]
            people.pop(decision.by, None)
            if decision.verdict == "open":
                people.clear()
            else:
                people[decision.by] = decision
        self.count += len(taken)
        return taken
