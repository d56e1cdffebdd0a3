"""Downloads the packages for a device's Python and processor on the desktop: the device needs no internet access."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import edge_agent
from edge_agent.errors import ConfigError

GLIBC = range(36, 16, -1)
"""Minor versions of glibc 2, newest first. Wheels built for them run on Bookworm and later."""
_COMPLETE = ".whole"
_EPOCH = (2025, 1, 1, 0, 0, 0)
_PIP = "pip>=24,<27"
# Debian's camera packages for Python 3.11 are built against numpy 1 and import the one we install.
_CONSTRAINTS = {(3, 11): "numpy<2"}


def wheels(python: tuple[int, int], machine: str, *, dashboard: bool = False) -> dict[str, Path]:
    """Return the paths of all wheels that a device needs, by file name. The wheels of edgeloop and pip are included.

    Wheels are downloaded only once and kept in the user's cache.

    Args:
        python: major and minor version of the device's python3.
        machine: processor of the device: aarch64, armv7l or x86_64.
        dashboard: True to include the packages of the dashboard.

    Raises:
        ConfigError: the packages cannot be downloaded.
    """
    requirements = [*_requirements(machine, dashboard=dashboard), _PIP]
    constraint = _CONSTRAINTS.get(python, "")
    key = hashlib.sha256("\n".join([*requirements, constraint]).encode()).hexdigest()[:8]
    folder = _cache() / "wheels" / f"{python[0]}.{python[1]}-{machine}-{key}"
    if not (folder / _COMPLETE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", prefix="edgeloop-", suffix=".txt") as constraints:
            constraints.write(constraint)
            constraints.flush()
            _download(folder, requirements, python, machine, Path(constraints.name))
        (folder / _COMPLETE).touch()
    own = own_wheel(folder.parent)
    return {path.name: path for path in (*sorted(folder.glob("*.whl")), own)}


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


def _requirements(machine: str, *, dashboard: bool) -> list[str]:
    """Return edgeloop's requirements for the processor of a device.

    The markers are evaluated here, because pip would evaluate them for this machine and not for the device.
    """
    from packaging.requirements import Requirement

    environment = {"platform_machine": machine, "extra": ""}
    found = []
    for line in distribution("edgeloop").requires or []:
        requirement = Requirement(line)
        extras = ("", "review") if dashboard else ("",)
        if requirement.marker is None or any(requirement.marker.evaluate(environment | {"extra": e}) for e in extras):
            found.append(f"{requirement.name}{requirement.specifier}")
    return found


def _download(folder: Path, requirements: list[str], python: tuple[int, int], machine: str, constraints: Path) -> None:
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in GLIBC]
    platforms += [f"manylinux2014_{machine}", f"linux_{machine}"]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", str(folder)]
    pip += ["--only-binary=:all:", "--implementation=cp", f"--python-version={python[0]}.{python[1]}"]
    pip += [f"--constraint={constraints}", *(f"--platform={platform}" for platform in platforms)]
    if machine != "armv7l":
        _run_pip([*pip, *requirements])
        return
    # The index has 32-bit wheels of only some packages; the device takes the others from Debian.
    available = [requirement for requirement in requirements if _has_wheel([*pip, "--no-deps", requirement])]
    if not any(re.match("tflite", requirement) for requirement in available):
        raise ConfigError(
            f"there is no tflite-runtime for Python {python[0]}.{python[1]} on {machine}; use a 64-bit Raspberry Pi OS"
        )


def _has_wheel(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _run_pip(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or done.stderr.splitlines()
        raise ConfigError(
            f"the packages for the device cannot be downloaded: {lines[-1] if lines else 'pip failed'}; "
            "is there a network here?"
        )


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "edgeloop"
