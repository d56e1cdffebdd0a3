"""Model bundle: one file with everything a device needs to run one model.

`NAME-VERSION.edgeloop` is a stored (uncompressed) zip file; unpacked, a bundle is a directory with the same files.
docs/reference/bundle.md describes the format. Bundles come from outside, so the reader trusts nothing: it accepts a
fixed set of file names, limits sizes before it reads any data, and hashes each file whenever it is read.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import msgspec

from .._version import __version__
from ..atomic_files import replacing
from ..errors import BundleError
from .manifest import FORMAT, CanaryImage, FileEntry, Manifest, version_key

MANIFEST, SIGNATURE = "manifest.json", "manifest.json.sig"
MODEL, LABELS, CARD, EXPECTED = "model.tflite", "labels.txt", "card.md", "canary/expected.json"

_MIB = 2**20
# Largest size each file may have, in bytes. The largest supported backbone, ResNet50 in float32, is 98 MiB.
_LIMITS = {MANIFEST: _MIB, SIGNATURE: 64 * 1024, MODEL: 512 * _MIB, LABELS: _MIB, CARD: _MIB, EXPECTED: 8 * _MIB}
_CANARY_IMAGE = re.compile(r"canary/[a-z0-9]{1,32}\.(?:jpg|png)\Z")
_CANARY_IMAGE_LIMIT = 16 * _MIB
_REQUIRED = (MODEL, LABELS, CARD, EXPECTED)

MAX_BYTES = 1024 * _MIB
MAX_FILES = 256
MAX_LABELS = 10_000
MAX_LABEL_LENGTH = 200

_END_OF_ZIP = struct.Struct("<4s4H2LH")
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files all match its manifest.

    Attributes:
        path: file or directory that the bundle was read from.
        manifest: description of the bundle.
        labels: class names; item i names output i of the model.
        digest: SHA-256 of `manifest.json`. It covers all other files too, because the manifest contains their hashes.
        raw: bytes of `manifest.json`, the content that is signed.
        signature: bytes of `manifest.json.sig`, not verified yet (see `.signature`); None if there is no signature.
    """

    path: Path
    manifest: Manifest
    labels: tuple[str, ...]
    digest: str
    raw: bytes = field(repr=False)
    signature: bytes | None = field(repr=False)

    def read(self, name: str) -> bytes:
        """Return the bytes of one file. They are hashed again, so that only verified bytes are used.

        Raises:
            BundleError: the bundle has no such file, or the file changed since the bundle was opened.
        """
        entry = self.manifest.files.get(name)
        if entry is None:
            raise BundleError(self.path, [f"it has no file {name}"])
        data = _read(self.path, name, entry.size)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise BundleError(self.path, [f"{name} has changed since the bundle was opened"])
        return data

    def canary(self) -> list[CanaryImage]:
        """Return the images for the canary test on the device; read each one with ``read(image.file)``."""
        try:
            images = msgspec.json.decode(self.read(EXPECTED), type=list[CanaryImage])
        except msgspec.DecodeError as error:
            raise BundleError(self.path, [f"{EXPECTED}: {error}"]) from error
        problems = [
            f"{EXPECTED}: {image.file!r} is not in the bundle, or its label or scores do not fit labels.txt"
            for image in images
            if image.file not in self.manifest.files
            or image.label not in self.labels
            or len(image.scores) != len(self.labels)
        ]
        if problems:
            raise BundleError(self.path, problems)
        return images


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read and verify a bundle file, or the directory it was unpacked into.

    Raises:
        BundleError: the bundle is not usable; the error lists all problems.
    """
    path = Path(path)
    sizes = _sizes(path)
    problems = _problems_of_names(sizes)
    if MANIFEST not in sizes:
        problems.append(f"{MANIFEST} is missing")
    if problems:
        raise BundleError(path, problems)

    raw = _read(path, MANIFEST, sizes[MANIFEST])
    manifest = _decode_manifest(path, raw)
    found = {name: size for name, size in sizes.items() if name not in (MANIFEST, SIGNATURE)}
    problems = _problems_of_files(path, manifest, found)
    labels: tuple[str, ...] = ()
    if not problems:
        labels, problems = _decode_labels(_read(path, LABELS, found[LABELS]))
        if manifest.labels_sha256 != manifest.files[LABELS].sha256:
            problems.append(f"{MANIFEST}: labels_sha256 is not the hash of {LABELS}")
        if manifest.tensors.output.shape[-1:] != (len(labels),):
            problems.append(
                f"{LABELS} names {len(labels)} classes, but the model's output is {manifest.tensors.output.shape}"
            )
    if problems:
        raise BundleError(path, problems)
    signature = _read(path, SIGNATURE, sizes[SIGNATURE]) if SIGNATURE in sizes else None
    return Bundle(path, manifest, labels, hashlib.sha256(raw).hexdigest(), raw, signature)


def write_bundle(
    path: str | os.PathLike[str],
    manifest: Manifest,
    files: Mapping[str, bytes],
    *,
    sign: Callable[[bytes], bytes] | None = None,
) -> str:
    """Write a bundle atomically: ``path`` becomes a complete, verified bundle or stays unchanged.

    The same manifest and the same files always produce the same bytes.

    Args:
        path: file to write; an existing file is replaced.
        manifest: description of the bundle; this function fills in ``files`` and ``labels_sha256``.
        files: contents of the files by name, without the manifest.
        sign: function that returns the signature over the manifest's bytes; without it the bundle is not signed.

    Returns:
        Digest of the bundle.
    """
    entries = {name: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in sorted(files.items())}
    manifest = msgspec.structs.replace(manifest, files=entries, labels_sha256=entries[LABELS].sha256)
    raw = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    signature = {} if sign is None else {SIGNATURE: sign(raw)}
    path = Path(path)
    with replacing(path) as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=False) as archive:
            for name, data in ((MANIFEST, raw), *signature.items(), *sorted(files.items())):
                info = zipfile.ZipInfo(name, _ZIP_EPOCH)
                info.create_system, info.external_attr = 3, 0o644 << 16
                archive.writestr(info, data)
        file.flush()
        # A bundle that this version could not read must never get the final name.
        open_bundle(file.name)
    return hashlib.sha256(raw).hexdigest()


def _decode_manifest(path: Path, raw: bytes) -> Manifest:
    try:
        # Decode the format number first: a newer format may have changed everything else.
        version = msgspec.json.decode(raw, type=_FormatOnly).format
        if version != FORMAT:
            raise BundleError(
                path, [f"it has format {version}, but edgeloop {__version__} reads format {FORMAT}; update edgeloop"]
            )
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(path, [f"{MANIFEST}: {error}"]) from error
    if version_key(manifest.min_agent) > version_key(__version__):
        raise BundleError(
            path, [f"it needs edgeloop {manifest.min_agent} or newer, but this is {__version__}; update edgeloop"]
        )
    return manifest


class _FormatOnly(msgspec.Struct):
    format: int


def _decode_labels(data: bytes) -> tuple[tuple[str, ...], list[str]]:
    try:
        labels = tuple(data.decode().removesuffix("\n").split("\n"))
    except UnicodeDecodeError:
        return (), [f"{LABELS} is not UTF-8"]
    return labels, [f"{LABELS}: {problem}" for problem in problems_of_labels(labels)]


def problems_of_labels(labels: tuple[str, ...]) -> list[str]:
    """Return the reasons why these class names cannot be used in a bundle; empty if they can.

    Control characters are refused: they could control the terminal or break the line format.
    """
    problems = []
    if not 2 <= len(labels) <= MAX_LABELS:
        problems.append(f"{len(labels)} classes; 2 to {MAX_LABELS} are possible")
    if len(set(labels)) != len(labels):
        problems.append("a class name occurs twice")
    for label in labels:
        if not label.strip() or not label.isprintable() or len(label) > MAX_LABEL_LENGTH:
            problems.append(f"{label[:40]!r} is empty, longer than {MAX_LABEL_LENGTH} characters or not printable")
            break
    return problems


def _problems_of_names(sizes: Mapping[str, int]) -> list[str]:
    problems = [f"{name[:80]!r} does not belong in a bundle" for name in sizes if _limit(name) is None]
    problems += [
        f"{name} has {size} bytes, at most {_limit(name)} are allowed"
        for name, size in sizes.items()
        if size > (_limit(name) or size)
    ]
    if sum(sizes.values()) > MAX_BYTES:
        problems.append(f"it contains {sum(sizes.values())} bytes, at most {MAX_BYTES} are allowed")
    return problems


def _problems_of_files(path: Path, manifest: Manifest, found: Mapping[str, int]) -> list[str]:
    """Return the differences between the files and the manifest; a file is hashed only if it has the right size."""
    listed = manifest.files
    problems = [f"{name} is missing from {MANIFEST}" for name in _REQUIRED if name not in listed]
    problems += [f"{name} is listed but missing" for name in sorted(listed.keys() - found.keys())]
    problems += [f"{name} is present but not listed" for name in sorted(found.keys() - listed.keys())]
    for name in sorted(listed.keys() & found.keys()):
        if listed[name].size != found[name]:
            problems.append(f"{name} has {found[name]} bytes, but {listed[name].size} are listed")
        else:
            try:
                data = _read(path, name, found[name])
            except BundleError as error:
                problems.extend(error.problems)
            else:
                if hashlib.sha256(data).hexdigest() != listed[name].sha256:
                    problems.append(f"{name} is damaged: its hash differs from the listed one")
    return problems


def _limit(name: str) -> int | None:
    """Return the largest allowed size of a file in bytes; None if a bundle cannot contain a file of this name."""
    if _CANARY_IMAGE.match(name):
        return _CANARY_IMAGE_LIMIT
    return _LIMITS.get(name)


# --- the two containers: a zip file and a directory -----------------------------------------

_ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, OverflowError, struct.error)


def _sizes(path: Path) -> dict[str, int]:
    """Return the size of every file by name, without reading the files."""
    try:
        return _directory_sizes(path) if path.is_dir() else _zip_sizes(path)
    except OSError as error:
        raise BundleError(path, [f"cannot be read: {error.strerror or error}"]) from error
    except _ZIP_ERRORS as error:
        raise BundleError(path, [f"not a zip file written by edgeloop: {error}"]) from error


def _read(path: Path, name: str, size: int) -> bytes:
    """Read exactly ``size`` bytes of one file; the caller has checked ``size`` against the limits."""
    try:
        if path.is_dir():
            data = _directory_read(path, name, size)
        else:
            with zipfile.ZipFile(path) as archive, archive.open(name) as file:
                data = file.read(size + 1)
    except OSError as error:
        raise BundleError(path, [f"{name} cannot be read: {error.strerror or error}"]) from error
    except (*_ZIP_ERRORS, KeyError) as error:
        raise BundleError(path, [f"{name} is damaged: {error}"]) from error
    if len(data) != size:
        raise BundleError(path, [f"{name} does not have the size it declares ({size} bytes)"])
    return data


def _zip_sizes(path: Path) -> dict[str, int]:
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would block
        raise BundleError(path, ["not a regular file"])
    with path.open("rb") as file:
        _check_zip_end(path, file)
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    problems = []
    sizes: dict[str, int] = {}
    for entry in entries:
        # Regular files have S_IFREG, or 0 if the writer left the mode out. Links and devices have other values.
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
            problems.append(f"{entry.filename[:80]!r} is a link or a special file")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 0x1:
            problems.append(f"{entry.filename[:80]!r} is compressed or encrypted; bundles are stored uncompressed")
        if entry.filename in sizes:
            problems.append(f"{entry.filename[:80]!r} occurs twice")
        sizes[entry.filename] = entry.file_size
    if problems:
        raise BundleError(path, problems)
    return sizes


def _check_zip_end(path: Path, file: BinaryIO) -> None:
    """Check the size of the table of contents before `zipfile` loads it; refuse comments, several disks and zip64."""
    size = file.seek(0, os.SEEK_END)
    if size > MAX_BYTES + _MIB:
        raise BundleError(path, [f"it has {size} bytes, at most {MAX_BYTES} are allowed"])
    if size < _END_OF_ZIP.size:
        raise BundleError(path, ["not a zip file written by edgeloop: too short"])
    file.seek(size - _END_OF_ZIP.size)
    magic, disk, toc_disk, here, entries, toc_size, toc_start, comment = _END_OF_ZIP.unpack(file.read(_END_OF_ZIP.size))
    if (
        magic != b"PK\x05\x06"
        or disk
        or toc_disk
        or comment
        or here != entries
        or toc_start + toc_size + _END_OF_ZIP.size != size
    ):
        raise BundleError(path, ["not a zip file written by edgeloop, or truncated; copy it again"])
    if entries > MAX_FILES:
        raise BundleError(path, [f"it contains {entries} files, at most {MAX_FILES} are allowed"])
    if toc_size > _MIB:
        raise BundleError(path, [f"its table of contents has {toc_size} bytes, at most {_MIB} are allowed"])


def _directory_sizes(path: Path) -> dict[str, int]:
    sizes: dict[str, int] = {}
    problems = []
    for folder, subfolders, names in os.walk(path):
        inside = Path(folder)
        for name in (*subfolders, *names):
            entry = inside / name
            status = entry.lstat()
            relative = entry.relative_to(path).as_posix()
            if stat.S_ISDIR(status.st_mode):
                if relative != "canary":
                    problems.append(f"{relative[:80]!r} does not belong in a bundle")
            elif not stat.S_ISREG(status.st_mode):
                problems.append(f"{relative[:80]!r} is a link or a special file")
            else:
                sizes[relative] = status.st_size
        if problems or len(sizes) > MAX_FILES:
            break
    if len(sizes) > MAX_FILES:
        problems.append(f"it contains more than {MAX_FILES} files")
    if problems:
        raise BundleError(path, problems)
    return sizes


def _directory_read(path: Path, name: str, size: int) -> bytes:
    # O_NOFOLLOW: the file that `_directory_sizes` checked may have been replaced by a link.
    handle = os.open(path / name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    with os.fdopen(handle, "rb") as file:
        return file.read(size + 1)
