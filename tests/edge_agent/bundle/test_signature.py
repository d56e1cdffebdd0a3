"""Real keys and the real ssh-keygen."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge_agent.bundle import open_bundle, write_bundle
from edge_agent.bundle.archive import MANIFEST, SIGNATURE
from edge_agent.bundle.signature import NAMESPACE, sign, verify, verify_bundle
from edge_agent.errors import ConfigError, SignatureError

from ...conftest import Run
from ...support.bundles import new_key

pytestmark = pytest.mark.needs("ssh-keygen")


@dataclass(frozen=True)
class Keys:
    """A key, another one, and a file that allows the first."""

    key: Path
    other: Path
    allowed: Path


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    folder = tmp_path_factory.mktemp("keys")
    key, other = new_key(folder / "key"), new_key(folder / "other")
    allowed = folder / "allowed_signers"
    allowed.write_text(f"someone@example.org {key.with_suffix('.pub').read_text()}")
    return Keys(key, other, allowed)


@pytest.fixture(scope="module")
def signed(bundle_file: Path, keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sign_again(bundle_file, tmp_path_factory.mktemp("signed") / bundle_file.name, keys.key)


def sign_again(bundle_file: Path, out: Path, key: Path) -> Path:
    """The same bundle, packed with a signature."""
    bundle = open_bundle(bundle_file)
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    write_bundle(out, bundle.manifest, files, sign=lambda raw: sign(raw, key))
    return out


def rebuilt(bundle: Path, out: Path, **changed: bytes | None) -> Path:
    """The bundle with some entries changed, or left out where None."""
    names = {"manifest": MANIFEST, "signature": SIGNATURE}
    with zipfile.ZipFile(bundle) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            key = next((key for key, value in names.items() if value == name), "")
            data = changed.get(key, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return out


def test_a_signed_bundle_is_the_unsigned_one_and_a_signature(signed: Path, bundle_file: Path) -> None:
    with zipfile.ZipFile(signed) as one, zipfile.ZipFile(bundle_file) as other:
        assert set(one.namelist()) - set(other.namelist()) == {SIGNATURE}
        assert one.read(MANIFEST) == other.read(MANIFEST)
    assert open_bundle(signed).digest == open_bundle(bundle_file).digest


def test_signing_twice_gives_the_same_bytes(signed: Path, bundle_file: Path, keys: Keys, tmp_path: Path) -> None:
    assert sign_again(bundle_file, tmp_path / signed.name, keys.key).read_bytes() == signed.read_bytes()


def test_the_signer_is_named_and_others_are_refused(
    signed: Path, bundle_file: Path, keys: Keys, tmp_path: Path
) -> None:
    found = verify_bundle(open_bundle(signed), keys.allowed)
    assert found is not None
    assert (found.signer, found.kind) == ("someone@example.org", "ED25519")
    assert found.key.startswith("SHA256:")
    unasked = verify_bundle(open_bundle(signed), None)
    assert unasked is not None
    assert unasked.signer is None
    assert verify_bundle(open_bundle(bundle_file), None) is None
    with pytest.raises(SignatureError, match="it is not signed"):
        verify_bundle(open_bundle(bundle_file), keys.allowed)
    strangers = tmp_path / "allowed_signers"
    strangers.write_text(f"me {keys.other.with_suffix('.pub').read_text()}")
    with pytest.raises(SignatureError, match="signed by a key that is not in"):
        verify_bundle(open_bundle(signed), strangers)
    with pytest.raises(ConfigError, match="no such file"):
        verify_bundle(open_bundle(signed), tmp_path / "missing")


def test_a_signature_over_something_else_is_refused(signed: Path, keys: Keys, tmp_path: Path) -> None:
    for name, signature in (("other", sign(b"another manifest", keys.key)), ("none", b"no signature"), ("empty", b"")):
        forged = rebuilt(signed, tmp_path / f"{name}-1.edgeloop", signature=signature)
        for allowed in (None, keys.allowed):
            with pytest.raises(SignatureError, match="does not match"):
                verify_bundle(open_bundle(forged), allowed)
    changed = open_bundle(signed).raw.replace(b'"created"', b'"createD"')
    with pytest.raises(SignatureError, match="does not match"):
        verify(changed, open_bundle(signed).signature or b"", keys.allowed)


def test_a_signature_made_for_another_purpose_does_not_count(signed: Path, keys: Keys, tmp_path: Path) -> None:
    raw = open_bundle(signed).raw
    done = subprocess.run(
        ["ssh-keygen", "-Y", "sign", "-f", keys.key, "-n", "git"], input=raw, capture_output=True, check=True
    )
    with pytest.raises(SignatureError, match="does not match"):
        verify(raw, done.stdout, keys.allowed)
    narrow = tmp_path / "allowed_signers"
    public = keys.key.with_suffix(".pub").read_text()
    narrow.write_text(f'me namespaces="git" {public}')
    with pytest.raises(SignatureError, match=r'allowed_signers:1: key is not permitted .* namespace "edgeloop-bundle"'):
        verify(raw, sign(raw, keys.key), narrow)
    narrow.write_text(f'me namespaces="{NAMESPACE}" {public}')
    assert verify(raw, sign(raw, keys.key), narrow).signer == "me"


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ('valid-before="20200101"', "allowed_signers:2: key has expired"),
        ('valid-after="20990101"', "allowed_signers:2: key is not yet valid"),
        ("valid-before=20990101", "allowed_signers:2: bad options: missing start quote"),
    ],
)
def test_a_key_that_is_listed_but_not_accepted_comes_with_ssh_keygens_reason(
    signed: Path, keys: Keys, tmp_path: Path, option: str, reason: str
) -> None:
    allowed = tmp_path / "allowed_signers"
    other, public = (key.with_suffix(".pub").read_text() for key in (keys.other, keys.key))
    allowed.write_text(f"me {other}you {option} {public}")
    with pytest.raises(SignatureError, match=f"a key that is not accepted: .*{reason}") as caught:
        verify_bundle(open_bundle(signed), allowed)
    assert "\n" not in str(caught.value)


def test_what_is_no_key_is_refused_before_the_work(edgeloop: Run, run_folder: Path, tmp_path: Path) -> None:
    ran = edgeloop("convert", run_folder, "--out", tmp_path / "x-1.edgeloop", "--sign", tmp_path / "none")
    assert ran.code == 2
    assert "ssh-keygen -t ed25519" in ran.line
    (tmp_path / "key").write_text("not a key")
    (tmp_path / "key").chmod(0o600)
    ran = edgeloop("convert", run_folder, "--out", tmp_path / "x-1.edgeloop", "--sign", tmp_path / "key")
    assert ran.code == 2
    assert "cannot sign with this key" in ran.line
    assert os.listdir(tmp_path) == ["key"]


def test_inspect_tells_who_signed(edgeloop: Run, signed: Path, bundle_file: Path, keys: Keys) -> None:
    ran = edgeloop("inspect", signed, "--allowed-signers", keys.allowed)
    assert "signed      by someone@example.org, ED25519 key SHA256:" in ran.out
    assert "signer not checked" in edgeloop("inspect", signed).out
    assert "signed      no" in edgeloop("inspect", bundle_file).out
    found = json.loads(edgeloop("inspect", signed, "--json", "--allowed-signers", keys.allowed).out)
    assert found["signed"]["signer"] == "someone@example.org"
    ran = edgeloop("inspect", bundle_file, "--allowed-signers", keys.allowed)
    assert ran.code == 1
    assert "it is not signed" in ran.line


def test_the_agent_runs_only_what_is_signed_where_told_so(
    edgeloop: Run, signed: Path, bundle_file: Path, keys: Keys, tmp_path: Path, video_file: Path
) -> None:
    shutil.copy(keys.allowed, tmp_path / "allowed_signers")
    settings = tmp_path / "agent.yaml"
    common = f"device: pi\nstate: state\nallowed_signers: allowed_signers\ncameras: {{c: {{source: {video_file}}}}}\n"
    settings.write_text(f"{common}bundle: {bundle_file}\n")
    ran = edgeloop("run", "--config", settings)
    assert ran.code == 1
    assert "it is not signed" in ran.line
    # The signed one passes that check and then lacks a broker.
    settings.write_text(f"{common}bundle: {signed}\nmqtt: {{host: 127.0.0.1, port: 1}}\n")
    ran = edgeloop("run", "--config", settings)
    assert "signed" not in ran.err
