"""Downloads the packages for a device's Python and processor on the desktop: the device needs no internet access.

The packages and the hashes of their wheels are pinned in `device_packages.json`, which `scripts/device_packages.py`
writes from the versions that are tested.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path

import edge_agent
from edge_agent.errors import ConfigError

PYTHONS = ((3, 11), (3, 12), (3, 13))
PIP = "pip>=24,<27"
_GLIBC = range(36, 16, -1)
"""Minor versions of glibc 2, newest first. Wheels built for them run on Bookworm and later."""
_EPOCH = (2025, 1, 1, 0, 0, 0)


def wheels(python: tuple[int, int], machine: str, *, dashboard: bool = False) -> dict[str, Path]:
    """Return the paths of all wheels that a device needs, by file name. The wheels of edgeloop and pip are included.

    Wheels are downloaded only once and kept in the user's cache. Each time, their hashes are compared with the pinned
    ones.

    Args:
        python: major and minor version of the device's python3.
        machine: processor of the device: aarch64 or x86_64.
        dashboard: True to include the packages of the dashboard.

    Raises:
        ConfigError: there are no packages for this Python and processor, or they cannot be downloaded.
    """
    environment = f"{python[0]}.{python[1]}-{machine}"
    pinned = json.loads((files(__package__) / "device_packages.json").read_text()).get(environment)
    if pinned is None:
        raise ConfigError(f"there are no packages for Python {python[0]}.{python[1]} on {machine}")
    wanted = pinned["base"] | (pinned["dashboard"] if dashboard else {})
    folder = _cache() / "wheels" / environment
    folder.mkdir(parents=True, exist_ok=True)
    missing = _missing(folder, wanted)
    if missing:
        _download(folder, missing, python, machine)
        missing = _missing(folder, wanted)
    if missing:
        raise ConfigError(f"{folder}: the index has another file than the pinned {next(iter(missing))}")
    own = own_wheel(folder.parent)
    return {name: folder / name for name in wanted} | {own.name: own}


def own_wheel(folder: Path) -> Path:
    """Build a reproducible wheel of the device's package from the files of this installation."""
    meta = distribution("edgeloop")
    info = f"edgeloop-{meta.version}.dist-info"
    files = {f"edge_agent/{path.relative_to(root).as_posix()}": path.read_bytes() for root, path in _sources()}
    for name in ("METADATA", "entry_points.txt"):
        files[f"{info}/{name}"] = (meta.read_text(name) or "").encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: edgeloop\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = "".join(f"{name},sha256={_encoded(data)},{len(data)}\n" for name, data in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"edgeloop-{meta.version}-py3-none-any.whl"
    with tempfile.TemporaryDirectory(dir=folder) as work:
        part = Path(work) / path.name
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                entry = zipfile.ZipInfo(name, _EPOCH)
                entry.external_attr = 0o644 << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, data)
        os.replace(part, path)
    return path


def _sources() -> Iterator[tuple[Path, Path]]:
    root = Path(edge_agent.__file__).parent
    for path in sorted(root.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield root, path


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def platform_options(python: tuple[int, int], machine: str) -> list[str]:
    """Return pip's options for wheels that a device with this Python and processor can install."""
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in _GLIBC]
    platforms += [f"manylinux2014_{machine}", f"linux_{machine}"]
    return [
        *("--only-binary=:all:", "--implementation=cp", f"--python-version={python[0]}.{python[1]}"),
        *(f"--platform={platform}" for platform in platforms),
    ]


def _missing(folder: Path, wanted: Mapping[str, str]) -> dict[str, str]:
    """Return the wheels that are not in the folder, or not with the pinned hash."""
    return {
        name: sha256
        for name, sha256 in wanted.items()
        if not (folder / name).is_file() or hashlib.sha256((folder / name).read_bytes()).hexdigest() != sha256
    }


def _download(folder: Path, wanted: Mapping[str, str], python: tuple[int, int], machine: str) -> None:
    lines = [f"{'=='.join(name.split('-')[:2])} --hash=sha256:{sha256}\n" for name, sha256 in wanted.items()]
    for name in wanted:
        (folder / name).unlink(missing_ok=True)
    with tempfile.NamedTemporaryFile("w", prefix="edgeloop-", suffix=".txt") as requirements:
        requirements.writelines(lines)
        requirements.flush()
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--dest", str(folder), "--no-deps", "--require-hashes", *platform_options(python, machine)]
        done = subprocess.run([*command, "-r", requirements.name], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or done.stderr.splitlines()
        raise ConfigError(
            f"the packages for the device cannot be downloaded: {errors[-1] if errors else 'pip failed'}; "
            "is there a network here?"
        )


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "edgeloop"
