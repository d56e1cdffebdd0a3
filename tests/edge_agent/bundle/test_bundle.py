from __future__ import annotations

import json
import os
import random
import re
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import edge_agent
from edge_agent.bundle import Bundle, open_bundle, write_bundle
from edge_agent.bundle.archive import MAX_FILES
from edge_agent.bundle.manifest import version_key
from edge_agent.errors import BundleError, EdgeloopError


@pytest.fixture
def files(bundle_file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(bundle_file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def with_manifest(files: dict[str, bytes], change: Callable[[dict[str, Any]], object]) -> dict[str, bytes]:
    manifest = json.loads(files["manifest.json"])
    change(manifest)
    return {**files, "manifest.json": json.dumps(manifest).encode()}


def problems(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_bundle_is_one_stored_zip_that_other_tools_read(bundle_file: Path) -> None:
    with zipfile.ZipFile(bundle_file) as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.namelist()[0] == "manifest.json"
        assert {"model.tflite", "labels.txt", "card.md", "canary/000.jpg"} <= set(archive.namelist())


def test_what_was_written_is_what_is_read(bundle_file: Path) -> None:
    bundle = open_bundle(bundle_file)
    assert (bundle.manifest.name, bundle.manifest.version) == ("ground", "1.2")
    assert bundle.labels == ("brick", "grass", "stars")
    assert bundle.read("labels.txt") == b"brick\ngrass\nstars\n"
    assert len(bundle.digest) == 64
    canary = bundle.canary()
    assert {image.label for image in canary} == set(bundle.labels)
    assert all(abs(sum(image.scores) - 1) < 0.05 for image in canary)


def test_an_unpacked_bundle_is_the_same_bundle(bundle_file: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(bundle_file) as archive:
        archive.extractall(tmp_path / "unpacked")
    packed, unpacked = open_bundle(bundle_file), open_bundle(tmp_path / "unpacked")
    assert packed.digest == unpacked.digest
    assert packed.read("model.tflite") == unpacked.read("model.tflite")


def test_the_same_content_gives_the_same_bytes(bundle_file: Path, files: dict[str, bytes], tmp_path: Path) -> None:
    bundle = open_bundle(bundle_file)
    content = {name: data for name, data in files.items() if name != "manifest.json"}
    digest = write_bundle(tmp_path / "again.edgeloop", bundle.manifest, dict(reversed(content.items())))
    assert digest == bundle.digest
    assert (tmp_path / "again.edgeloop").read_bytes() == bundle_file.read_bytes()


def test_a_flipped_byte_anywhere_is_noticed(bundle_file: Path, tmp_path: Path) -> None:
    whole = bundle_file.read_bytes()
    digest = open_bundle(bundle_file).digest
    damaged = tmp_path / "damaged.edgeloop"
    places = random.Random(1).sample(range(len(whole)), 60)
    toc = struct.unpack("<L", whole[-6:-2])[0]
    places += random.Random(2).sample(range(toc, len(whole)), 60)  # the table of contents most of all
    survived = 0
    for place in places:
        damaged.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        try:
            # A flip in a time stamp or an attribute of the container changes nothing that is used.
            survived += open_bundle(damaged).digest == digest
        except BundleError as error:
            assert "\n" not in str(error)  # noqa: PT017  both outcomes are right, and checked
    assert survived < len(places) / 3


def test_every_file_content_is_covered_by_a_hash(files: dict[str, bytes], tmp_path: Path) -> None:
    for name in files.keys() - {"manifest.json"}:
        data = bytearray(files[name])
        data[len(data) // 2] ^= 1
        path = write_zip(tmp_path / "x.edgeloop", {**files, name: bytes(data)})
        assert f"{name} is damaged" in problems(path)


def test_every_prefix_of_a_bundle_is_refused(bundle_file: Path, tmp_path: Path) -> None:
    whole = bundle_file.read_bytes()
    for length in (0, 1, 21, 22, 1000, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.edgeloop").write_bytes(whole[:length])
        assert "not a usable bundle" in problems(tmp_path / "cut.edgeloop")


def test_a_manifest_that_claims_10_gb_is_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    def lie(manifest: dict[str, Any]) -> None:
        manifest["files"]["model.tflite"]["size"] = 10 * 2**30

    path = write_zip(tmp_path / "x.edgeloop", with_manifest(files, lie))
    assert f"but {10 * 2**30} are listed" in problems(path)


def test_a_zip_entry_that_claims_10_gb_is_refused_without_reading_it(files: dict[str, bytes], tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.edgeloop", files)
    raw = bytearray(path.read_bytes())
    entry = raw.rindex(b"PK\x01\x02", 0, raw.rindex(b"model.tflite"))
    # zip64: the sizes move to an extra field of 8-byte numbers. The name and extra length follow at 28 and 30.
    raw[entry + 20 : entry + 28] = b"\xff" * 8
    raw[entry + 30 : entry + 32] = struct.pack("<H", 20)
    end_of_name = entry + 46 + len("model.tflite")
    raw[end_of_name:end_of_name] = struct.pack("<HHQQ", 1, 16, 10 * 2**30, 10 * 2**30)
    toc_size = struct.unpack("<L", raw[-10:-6])[0]
    raw[-10:-6] = struct.pack("<L", toc_size + 20)
    path.write_bytes(raw)
    assert f"model.tflite has {10 * 2**30} bytes" in problems(path)


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/etc/passwd",
        "canary/../../evil.jpg",
        "canary\\..\\x.jpg",
        "C:evil",
        "canary/x.exe",
        "a/model.tflite",
    ],
)
def test_names_that_lead_elsewhere_have_no_place(files: dict[str, bytes], tmp_path: Path, name: str) -> None:
    path = write_zip(tmp_path / "x.edgeloop", {**files, name: b"evil"})
    assert "does not belong in a bundle" in problems(path)


def test_a_link_in_a_zip_is_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "x.edgeloop"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK if name == "card.md" else stat.S_IFREG) << 16
            archive.writestr(info, data)
    assert "'card.md' is a link" in problems(path)


def test_compressed_encrypted_and_doubled_entries_are_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "x.edgeloop"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.tflite", bytes(10_000_000))  # a small bomb
    assert "compressed or encrypted" in problems(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("card.md", b"one")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("card.md", b"two")
    assert "occurs twice" in problems(path)


def test_too_many_files_are_refused_before_they_are_listed(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.edgeloop", {f"canary/{i:04x}.jpg": b"" for i in range(MAX_FILES + 1)})
    assert f"{MAX_FILES} are allowed" in problems(path)


def test_a_table_of_contents_that_is_too_large_is_named(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.edgeloop", {f"canary/{'n' * 60_000}{number}": b"" for number in range(20)})
    assert re.search(r"its table of contents has \d+ bytes, at most 1048576 are allowed", problems(path))


def test_missing_unlisted_and_damaged_files_are_reported_together(files: dict[str, bytes], tmp_path: Path) -> None:
    files = {name: data for name, data in files.items() if name != "canary/001.jpg"}
    path = write_zip(tmp_path / "x.edgeloop", {**files, "canary/fff.jpg": b"x", "labels.txt": b"brick\ngrass\nother\n"})
    said = problems(path)
    assert "canary/001.jpg is listed but missing" in said
    assert "canary/fff.jpg is present but not listed" in said
    assert "labels.txt is damaged" in said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(format=2), "format 2, but edgeloop"),
        (lambda m: m.update(format="1"), "Expected `int`"),
        (lambda m: m.update(min_agent="99.0"), "needs edgeloop 99.0 or newer"),
        (lambda m: m.update(name="../x"), r"name"),
        (lambda m: m.update(version="1; rm -rf"), r"version"),
        (lambda m: m.update(created="\x1b[2Jnow"), "created"),
        (lambda m: m["preprocess"].update(size=[100000, 224]), "2048"),
        (lambda m: m["preprocess"].update(mean=[1, 2, 3]), "unknown field `mean`"),
        (lambda m: m.pop("files"), "missing required field `files`"),
        (lambda m: m["files"].pop("card.md"), "card.md is missing from manifest.json"),
        (lambda m: m["tensors"]["output"].update(shape=[1, 7]), "names 3 classes"),
        (lambda m: m.update(labels_sha256="0" * 64), "labels_sha256"),
    ],
)
def test_a_manifest_that_does_not_hold_is_refused(
    files: dict[str, bytes], tmp_path: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    assert says in problems(write_zip(tmp_path / "x.edgeloop", with_manifest(files, change)))


def test_a_later_field_of_the_same_format_is_ignored(files: dict[str, bytes], tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.edgeloop", with_manifest(files, lambda m: m.update(from_the_future=1)))
    assert open_bundle(path).manifest.name == "ground"


@pytest.mark.parametrize("manifest", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"format": 1e400}'])
def test_a_manifest_that_is_no_manifest_is_refused(files: dict[str, bytes], tmp_path: Path, manifest: bytes) -> None:
    assert "manifest.json" in problems(write_zip(tmp_path / "x.edgeloop", {**files, "manifest.json": manifest}))


@pytest.mark.parametrize(
    "labels", [b"one\n", b"a\na\n", b"a\n\n", b"a\n\x1b[31mred\n", b"a\n\xff\n", b"a\n" + b"b" * 201]
)
def test_labels_that_could_mislead_are_refused(files: dict[str, bytes], tmp_path: Path, labels: bytes) -> None:
    import hashlib

    digest = hashlib.sha256(labels).hexdigest()

    def follow(manifest: dict[str, Any]) -> None:
        manifest["files"]["labels.txt"] = {"sha256": digest, "size": len(labels)}
        manifest["labels_sha256"] = digest

    path = write_zip(tmp_path / "x.edgeloop", with_manifest({**files, "labels.txt": labels}, follow))
    assert "labels.txt" in problems(path)


def test_random_bytes_and_random_damage_never_raise_anything_else(bundle_file: Path, tmp_path: Path) -> None:
    whole, chance = bundle_file.read_bytes(), random.Random(3)
    toc = struct.unpack("<L", whole[-6:-2])[0]
    for _ in range(150):
        tail = bytearray(whole[toc:])
        for _ in range(chance.randint(1, 12)):
            tail[chance.randrange(len(tail))] = chance.randrange(256)
        (tmp_path / "x.edgeloop").write_bytes(chance.choice([whole[:toc] + tail, chance.randbytes(400), bytes(tail)]))
        with suppress(EdgeloopError):
            open_bundle(tmp_path / "x.edgeloop")


def test_a_file_changed_after_the_check_is_not_handed_out(bundle_file: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(bundle_file) as archive:
        archive.extractall(tmp_path / "b")
    bundle = open_bundle(tmp_path / "b")
    card = tmp_path / "b" / "card.md"
    card.write_bytes(card.read_bytes()[::-1])
    with pytest.raises(BundleError, match="changed since"):
        bundle.read("card.md")
    card.unlink()
    card.symlink_to("/etc/hostname")
    with pytest.raises(BundleError, match="cannot be read"):
        bundle.read("card.md")


def test_a_directory_with_links_pipes_or_strangers_is_refused(bundle_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    with zipfile.ZipFile(bundle_file) as archive:
        archive.extractall(folder)
    (folder / "note.txt").write_text("hello")
    assert "'note.txt' does not belong" in problems(folder)
    (folder / "note.txt").unlink()
    shutil.move(folder / "card.md", tmp_path / "card.md")
    (folder / "card.md").symlink_to(tmp_path / "card.md")
    assert "'card.md' is a link" in problems(folder)
    (folder / "card.md").unlink()
    os.mkfifo(folder / "card.md")
    assert "'card.md' is a link or a special file" in problems(folder)


def test_a_missing_file_and_a_pipe_are_refused_without_waiting(tmp_path: Path) -> None:
    assert "No such file" in problems(tmp_path / "nothing.edgeloop")
    os.mkfifo(tmp_path / "pipe.edgeloop")
    assert "not a regular file" in problems(tmp_path / "pipe.edgeloop")


def test_a_bundle_that_would_be_refused_is_not_written(
    bundle_file: Path, files: dict[str, bytes], tmp_path: Path
) -> None:
    manifest = open_bundle(bundle_file).manifest
    content = {name: data for name, data in files.items() if name != "manifest.json"}
    target = tmp_path / "bad.edgeloop"
    target.write_bytes(b"the old one")
    with pytest.raises(BundleError):
        write_bundle(target, manifest, {**content, "labels.txt": b"only one\n"})
    assert target.read_bytes() == b"the old one"
    assert os.listdir(tmp_path) == ["bad.edgeloop"]


def test_canary_entries_must_fit_the_bundle(files: dict[str, bytes], tmp_path: Path, bundle_file: Path) -> None:
    content = {name: data for name, data in files.items() if name != "manifest.json"}
    expected = json.loads(content["canary/expected.json"])
    expected[0]["label"] = "nothing of ours"
    content["canary/expected.json"] = json.dumps(expected).encode()
    write_bundle(tmp_path / "x.edgeloop", open_bundle(bundle_file).manifest, content)
    with pytest.raises(BundleError, match="its label or scores do not fit"):
        open_bundle(tmp_path / "x.edgeloop").canary()


def test_versions_compare_as_numbers() -> None:
    assert version_key("1.10") > version_key("1.9")
    assert version_key("1.0") == version_key("1")
    assert version_key("0") == version_key("0.0.0")


def test_a_bundle_can_be_used_through_the_public_name(bundle_file: Path) -> None:
    assert isinstance(edge_agent.open_bundle(bundle_file), Bundle)
