"""Writes deploy/provisioning/device_packages.json: the packages that a device needs, with the hashes of their wheels.

The versions are those in constraints.txt, which have been tested. The hashes come from the package index. Run this
script whenever constraints.txt or the dependencies in pyproject.toml change. It needs access to the package index.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from deploy.provisioning.wheels import PIP, PYTHONS, platform_options

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "deploy" / "provisioning" / "device_packages.json"
MACHINES = ("aarch64", "x86_64")
# Debian's camera packages for Python 3.11 are built for numpy 1 and import the numpy that is installed. With this
# Python, these three packages therefore have older versions than in constraints.txt, because the newest ones need numpy
# 2.
WITH_NUMPY_1 = ("numpy", "opencv-python-headless", "ml_dtypes")


def main() -> None:
    """Resolve the packages for each Python and processor, and write the file."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base = project["dependencies"]
    dashboard = [*base, *project["optional-dependencies"]["review"]]
    pinned = {}
    for python in PYTHONS:
        for machine in MACHINES:
            plain = resolved([*base, PIP], python, machine)
            more = resolved([*dashboard, PIP], python, machine)
            pinned[f"{python[0]}.{python[1]}-{machine}"] = {
                "base": plain,
                "dashboard": {name: sha256 for name, sha256 in more.items() if name not in plain},
            }
    TARGET.write_text(json.dumps(pinned, indent=1, sort_keys=True) + "\n")


def resolved(requirements: list[str], python: tuple[int, int], machine: str) -> dict[str, str]:
    """Return the SHA-256 of each wheel that pip would install on this Python and processor, by file name."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    if python == (3, 11):
        lines = [line for line in lines if line.split("==")[0] not in WITH_NUMPY_1] + ["numpy<2"]
    with tempfile.TemporaryDirectory() as work:
        constraints, report = Path(work) / "constraints.txt", Path(work) / "report.json"
        constraints.write_text("\n".join(lines) + "\n")
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--report", str(report), "--target", work, "--constraint", str(constraints)]
        subprocess.run([*command, *platform_options(python, machine), *requirements], check=True)
        found = json.loads(report.read_text())["install"]
    return {
        one["download_info"]["url"].rpartition("/")[2]: one["download_info"]["archive_info"]["hashes"]["sha256"]
        for one in found
    }


if __name__ == "__main__":
    main()
