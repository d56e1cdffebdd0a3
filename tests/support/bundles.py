"""Bundles made from another bundle, and keys that sign them."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from edge_agent.bundle import open_bundle, write_bundle
from edge_agent.bundle.archive import EXPECTED
from edge_agent.bundle.manifest import CanaryImage
from edge_agent.bundle.signature import sign
from edge_agent.store.canary import CanaryLimits

ONE = CanaryLimits(threads=1)
"""Limits of a canary test that leaves the other cores to the other tests."""


def repacked(
    bundle_file: Path,
    out: Path,
    *,
    version: str | None = None,
    name: str | None = None,
    files: Mapping[str, bytes] | None = None,
    expected: Sequence[CanaryImage] | None = None,
    key: Path | None = None,
) -> Path:
    """Write the same bundle with something changed and all its hashes right."""
    bundle = open_bundle(bundle_file)
    content = {name: bundle.read(name) for name in bundle.manifest.files} | dict(files or {})
    if expected is not None:
        content[EXPECTED] = msgspec.json.encode(list(expected))
    manifest = bundle.manifest
    if version is not None:
        manifest = msgspec.structs.replace(manifest, version=version)
    if name is not None:
        manifest = msgspec.structs.replace(manifest, name=name)
    write_bundle(out, manifest, content, sign=None if key is None else lambda raw: sign(raw, key))
    return out


def new_key(path: Path, passphrase: str = "") -> Path:
    """Make an SSH key that can sign bundles."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "", "-f", path], check=True)
    return path
