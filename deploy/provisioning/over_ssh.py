"""Provisions a machine with Raspberry Pi OS or Debian over SSH: copies the payload to it and runs `setup.py` there."""

from __future__ import annotations

import asyncio
import json
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.errors import DeviceError

from ..fleet.inventory import Host
from ..fleet.ssh import Connection, as_root, connected
from ..on_device.setup import problems
from .payload import ON_DEVICE, Kit, make_kit
from .wheels import wheels

FOLDER = ".cache/edgeloop/kit"
"""Folder of the payload, relative to the login user's home folder, where no other user can write."""
_BLOCK = 64 * 1024
_SETUP_S = 1800.0


@dataclass(frozen=True)
class StepResult:
    """One line of the output of `setup.py`. ``state`` is "done", "changed", "would", "problem" or "note"."""

    step: str
    state: str
    text: str


@dataclass(frozen=True)
class DeviceSpec:
    """Specification of a device. `deploy.provisioning.payload.make_kit` describes the fields."""

    config: Path
    trust: Sequence[Path] = ()
    bundle: Path | None = None
    dashboard: bool = False


OnProgress = Callable[[str, str, int, int], Any]
"""Callback that takes the host, the current step, the bytes done and the total bytes (0 and 0 if unknown)."""


async def provision(
    host: Host,
    spec: DeviceSpec,
    *,
    dry: bool,
    ssh_config: Path | None,
    on_progress: OnProgress,
    gathering: asyncio.Lock,
) -> list[StepResult]:
    """Provision a device, or only report what would change.

    Args:
        host: the device.
        spec: specification of the device.
        dry: True to only report what would change.
        ssh_config: SSH configuration file that is used instead of the user's.
        on_progress: called with the progress.
        gathering: lock that is held while wheels are downloaded, because many devices share the downloaded wheels.

    Raises:
        DeviceError: the device cannot be reached or cannot be provisioned.
        ConfigError: the settings or the packages cannot be used.
    """
    async with connected(host, ssh_config=ssh_config) as device:
        on_progress(host.name, "checking", 0, 0)
        facts = await read_facts(device)
        on_progress(host.name, "packages", 0, 0)
        python, machine = (facts["python"][0], facts["python"][1]), facts["machine"]
        async with gathering:
            gathered = await asyncio.to_thread(wheels, python, machine, dashboard=spec.dashboard)
        kit = make_kit(
            spec.config,
            {f"{python[0]}.{python[1]}-{machine}": gathered},
            device=host.name,
            settings=host.settings,
            trust=spec.trust,
            bundle=spec.bundle,
        )
        await _command(device, f"umask 077; mkdir -p {FOLDER}/wheels")
        await _send(device, kit.files, lambda _done, _of: None)
        planned = await _run_setup(device, "plan", on_progress)
        if dry or not any(result.state == "would" for result in planned):
            await _command(device, f"rm -rf {FOLDER}")
            return planned
        if any(result.step == "packages" and result.state == "would" for result in planned):
            missing = await _missing(device, kit)
            await _send(device, missing, lambda done, of: on_progress(host.name, "sending", done, of))
        applied = await _run_setup(device, "apply", on_progress)
        await _command(device, f"rm -rf {FOLDER}")
        return applied


async def deprovision(host: Host, *, dry: bool, discard: bool, ssh_config: Path | None) -> list[StepResult]:
    """Remove edgeloop from a device.

    Args:
        host: the device.
        dry: True to only report what would be removed.
        discard: True to delete captures that were not pulled.
        ssh_config: SSH configuration file that is used instead of the user's.

    Raises:
        DeviceError: the device cannot be reached, or it holds captures and both ``discard`` and ``dry`` are False.
    """
    async with connected(host, ssh_config=ssh_config) as device:
        facts = await read_facts(device, check=False)
        if facts["captures"] and not discard and not dry:
            raise DeviceError(
                f"{host.name}: it holds {facts['captures']} captures; fetch them with edgeloop deploy pull, or delete "
                "them with --discard-captures"
            )
        script = (ON_DEVICE / "setup.py").read_bytes()
        arguments = ["python3", "-", "remove", *(["--dry-run"] if dry else [])]
        done = await device.run(as_root(arguments), script, timeout_s=_SETUP_S)
        return _parse(device, done.exit_code, done.stdout, done.stderr)


async def read_facts(device: Connection, *, check: bool = True) -> dict[str, Any]:
    """Run `setup.py` on a machine to read its facts, such as the version of Python and the processor.

    Args:
        device: connection to the machine.
        check: True to raise an error if the machine cannot be provisioned.

    Raises:
        DeviceError: the machine has no Python, denies root access, or cannot be provisioned.
    """
    done = await device.run(as_root(["python3", "-", "facts"]), (ON_DEVICE / "setup.py").read_bytes())
    if done.exit_code != 0:
        if "python3" in done.stderr and "not found" in done.stderr:
            raise DeviceError(
                f"{device.host.name}: it has no python3; expected Raspberry Pi OS or Debian, Bookworm or later"
            )
        raise device.failure(done.exit_code, done.stderr)
    try:
        facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        reasons = problems(facts, now_s=time.time()) if check else []
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise DeviceError(
            f"{device.host.name}: expected the output of setup.py, got {done.stdout[:100]!r}; does the login shell "
            "print something?"
        ) from None
    if reasons:
        raise DeviceError(f"{device.host.name}: {'; '.join(reasons)}")
    return facts


async def _run_setup(device: Connection, verb: str, on_progress: OnProgress) -> list[StepResult]:
    """Run the payload's `setup.py` on the device and report each step when it is done."""
    # The login shell resolves the home folder; root cannot know it.
    inner = f'cd; kit=$PWD/{FOLDER}; if [ "$(id -u)" = 0 ]; then sudo=; else sudo="sudo -n --"; fi; '
    command = f'{inner}exec $sudo python3 "$kit/setup.py" {verb} --kit "$kit"'
    results: list[StepResult] = []
    async with device.process(command) as process:
        process.stdin.write_eof()
        while line := await asyncio.wait_for(process.stdout.readline(), _SETUP_S):
            results += _parse(device, 0, line, "")
            on_progress(device.host.name, results[-1].text or results[-1].step, 0, 0)
        errors = await process.stderr.read()
        await process.wait_closed()
        code = -1 if process.exit_status is None else process.exit_status
    reasons = [result.text for result in results if result.state == "problem"]
    if reasons:
        raise DeviceError(f"{device.host.name}: {'; '.join(reasons)}")
    if code != 0:
        raise device.failure(code, errors.decode(errors="replace"))
    return results


def _parse(device: Connection, exit_code: int, stdout: bytes, stderr: str) -> list[StepResult]:
    """Parse the output of `setup.py`.

    Raises:
        DeviceError: `setup.py` failed, or the output is not its output.
    """
    if exit_code != 0 and not stdout:
        raise device.failure(exit_code, stderr)
    try:
        results = [
            StepResult(**{key: str(value) for key, value in json.loads(line).items()}) for line in stdout.splitlines()
        ]
    except (ValueError, TypeError, AttributeError):
        raise DeviceError(
            f"{device.host.name}: expected the output of setup.py, got {stdout[:100]!r}; does the login shell "
            "print something?"
        ) from None
    reasons = [result.text for result in results if result.state == "problem"]
    if exit_code != 0:
        raise DeviceError(f"{device.host.name}: {'; '.join(reasons) or stderr}")
    return results


async def _missing(device: Connection, kit: Kit) -> dict[str, Path]:
    """Return the wheels that still have to be sent. An interrupted attempt may have sent some completely before."""
    output = await _command(device, f"cd {FOLDER} && sha256sum wheels/*.whl 2>/dev/null || true")
    present = {name: digest for digest, _, name in (line.partition("  ") for line in output.decode().splitlines())}
    about = json.loads(kit.files["kit.json"])
    expected = {f"wheels/{name}": digest for group in about["wheels"].values() for name, digest in group.items()}
    return {name: path for name, path in kit.wheel_paths().items() if present.get(name) != expected[name]}


async def _send(device: Connection, files: Mapping[str, bytes | Path], on_bytes: Callable[[int, int], Any]) -> None:
    """Send files to the payload's folder. They are sent as a tar archive, which every Linux system can unpack."""
    sizes = {name: len(data) if isinstance(data, bytes) else data.stat().st_size for name, data in files.items()}
    done, of = 0, sum(sizes.values())
    async with device.process(f"umask 077; tar -x -f - -C {FOLDER}") as process:
        try:
            for name, data in files.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode, entry.mtime = sizes[name], 0o600, int(time.time())
                process.stdin.write(entry.tobuf(tarfile.USTAR_FORMAT))
                content = data if isinstance(data, bytes) else await asyncio.to_thread(data.read_bytes)
                for start in range(0, len(content), _BLOCK):
                    process.stdin.write(content[start : start + _BLOCK])
                    await process.stdin.drain()
                    done += len(content[start : start + _BLOCK])
                    on_bytes(done, of)
                process.stdin.write(bytes(-sizes[name] % tarfile.BLOCKSIZE))
            process.stdin.write(bytes(2 * tarfile.BLOCKSIZE))
            process.stdin.write_eof()
        except (BrokenPipeError, ConnectionError):
            pass  # tar prints the reason
        errors = (await process.stderr.read()).decode(errors="replace")
        await process.wait_closed()
        if process.exit_status != 0:
            raise device.failure(-1 if process.exit_status is None else process.exit_status, errors)


async def _command(device: Connection, command: str) -> bytes:
    done = await device.run(command)
    if done.exit_code != 0:
        raise device.failure(done.exit_code, done.stderr)
    return done.stdout
