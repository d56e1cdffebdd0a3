"""Assembles the provisioning payload (kit): all files with which `setup.py` turns a machine into a device."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edge_agent._version import __version__
from edge_agent.bundle import open_bundle
from edge_agent.bundle.signature import NAMESPACE
from edge_agent.config import settings_of
from edge_agent.errors import ConfigError
from edge_agent.yaml_files import read_yaml

from ..on_device import setup
from ..on_device.setup import ETC

ON_DEVICE = Path(setup.__file__).parent
SIGNERS = "allowed_signers"
_KEY = re.compile(r"(?P<key>(?:ssh|ecdsa|sk)-[a-z0-9@.-]+ [A-Za-z0-9+/=]+)(?: (?P<comment>.*))?\Z")
# Keys of agent.yaml that refer to files, and the names of these files on the device.
_FILES = {
    ("mqtt", "password_file"): "mqtt_password",
    ("mqtt", "tls", "ca"): "mqtt_ca.pem",
    ("mqtt", "tls", "certificate"): "mqtt_certificate.pem",
    ("mqtt", "tls", "key"): "mqtt_key.pem",
    ("dashboard", "password_file"): "dashboard_password",
    ("allowed_signers",): SIGNERS,
}


@dataclass(frozen=True)
class Kit:
    """The provisioning payload.

    Attributes:
        files: contents of the files, by their names in the payload.
        wheels: for each ``<python>-<processor>``, such as ``3.11-aarch64``, the paths of the wheels by file name.
    """

    files: Mapping[str, bytes]
    wheels: Mapping[str, Mapping[str, Path]]

    def wheel_paths(self) -> dict[str, Path]:
        """Return the paths of the wheels by their names in the payload. A wheel for several Pythons appears once."""
        return {f"wheels/{name}": path for wheels in self.wheels.values() for name, path in wheels.items()}


def make_kit(
    config: Path,
    wheels: Mapping[str, Mapping[str, Path]],
    *,
    device: str,
    settings: Mapping[str, Any] | None = None,
    trust: Sequence[Path] = (),
    bundle: Path | None = None,
    card: bool = False,
) -> Kit:
    """Assemble the provisioning payload for one device.

    Args:
        config: path of agent.yaml; the files to which it refers are included.
        wheels: for each ``<python>-<processor>``, the wheels that `deploy.provisioning.wheels` gathers.
        device: name of the device, if agent.yaml has none.
        settings: settings that override agent.yaml.
        trust: public keys of the allowed signers. If keys are given, the device accepts only bundles signed by them.
        bundle: bundle of the first model; None for no model.
        card: True for a payload on an SD card, which the device installs itself at its first boot.

    Raises:
        ConfigError: agent.yaml, a key or the bundle cannot be used.
    """
    etc = _etc(config, device, settings or {}, trust)
    about: dict[str, Any] = {
        "format": 1,
        "version": __version__,
        "wheels": {tag: {name: _sha256(path) for name, path in group.items()} for tag, group in wheels.items()},
        "etc": sorted(etc),
    }
    files = {f"etc/{name}": data for name, data in etc.items()}
    files |= {name: (ON_DEVICE / name).read_bytes() for name in ("setup.py", "edgeloop.service")}
    if card:
        files |= {name: (ON_DEVICE / name).read_bytes() for name in ("first_boot.py", "edgeloop-first-boot.service")}
        about["made_s"] = time.time()
    if bundle is not None:
        opened = open_bundle(bundle)
        files["bundle.edgeloop"] = bundle.read_bytes()
        about["bundle"] = {"file": "bundle.edgeloop", "digest": opened.digest}
    files["kit.json"] = json.dumps(about, indent=2).encode()
    return Kit(files, wheels)


def _etc(config: Path, device: str, settings: Mapping[str, Any], trust: Sequence[Path]) -> dict[str, bytes]:
    """Return the contents of the files in /etc/edgeloop, by name."""
    document = read_yaml(config, hint="write one; see docs/reference/agent-yaml.md")
    if not isinstance(document, dict):
        raise ConfigError(f"{config}: expected keys and values")
    document = _merged({"device": device} | document, settings)
    if "bundle" in document:
        raise ConfigError(
            f"{config}: it has the key bundle, but a device runs the bundle in its store; delete the line and push the "
            "bundle"
        )
    if document.get("state", "/var/lib/edgeloop") != "/var/lib/edgeloop":
        raise ConfigError(f"{config}: state is always /var/lib/edgeloop on a device; delete the line")
    etc: dict[str, bytes] = {}
    if trust:
        if "allowed_signers" in document:
            raise ConfigError(f"{config}: it has the key allowed_signers; give either that or --trust")
        etc[SIGNERS] = "".join(_signer(key) for key in trust).encode()
    # Checked first, because the names of cameras become names of files.
    cameras = settings_of(document, config).cameras
    camera_files = {("cameras", name, "tls", "ca"): f"camera_{name}_ca.pem" for name in cameras}
    for keys, name in (_FILES | camera_files).items():
        data = _referenced_file(document, keys, name, config, settings)
        if data is not None:
            etc[name] = data
    if trust:
        document["allowed_signers"] = f"{ETC}/{SIGNERS}"
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    etc["agent.yaml"] = f"# From {config.name}; edgeloop deploy provision overwrites this file.\n{text}".encode()
    return etc


def _referenced_file(
    document: Any, keys: tuple[str, ...], name: str, config: Path, settings: Mapping[str, Any]
) -> bytes | None:
    """Read the file to which a key of agent.yaml refers, and set the key to the path of the file on the device.

    Return the content of the file, or None if the key is missing.
    """
    value = _value(document, keys)
    if not isinstance(value, str):
        return None
    source = config.parent / value
    # An inventory may come from somebody else, and must not send any file of this computer to a device.
    if _value(settings, keys) is not None and not source.resolve().is_relative_to(config.parent.resolve()):
        raise ConfigError(
            f"the inventory: settings.{'.'.join(keys)}: {value} is not in the folder of {config}; move it there"
        )
    _value(document, keys[:-1])[keys[-1]] = f"{ETC}/{name}"
    try:
        return source.read_bytes()
    except OSError as error:
        raise ConfigError(f"{config}: {'.'.join(keys)}: {source}: {error.strerror or error}") from error


def _value(document: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        document = document.get(key) if isinstance(document, Mapping) else None
    return document


def _merged(base: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(base)
    for key, value in overrides.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else copy.deepcopy(value)
    return merged


def _signer(path: Path) -> str:
    """Return the line of allowed_signers for a public key. The line makes the key valid only for signing bundles."""
    key, comment = public_key(path)
    name = re.sub(r"[^A-Za-z0-9@._-]", "-", comment or path.stem) or "owner"
    return f'{name} namespaces="{NAMESPACE}" {key}\n'


def public_key(path: Path) -> tuple[str, str]:
    """Read an OpenSSH public key file and return the key and its comment.

    Raises:
        ConfigError: the file cannot be read or is not a public key.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a public key: {error}") from error
    found = _KEY.match(text)
    if found is None:
        raise ConfigError(f"{path}: expected a public key, as in ~/.ssh/id_ed25519.pub; found something else")
    return found["key"], found["comment"] or ""


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
