"""A fresh Raspberry Pi OS or Debian to a device, over SSH: the kit goes there, and `setup.py` does the rest."""

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
"""In the home of who logs in: nobody else may write there."""
_BLOCK = 64 * 1024
_SETUP_S = 1800.0


@dataclass(frozen=True)
class Said:
    """A line of `setup.py`: ``state`` is done, changed, would, problem or note."""

    step: str
    state: str
    text: str


@dataclass(frozen=True)
class DeviceSpec:
    """What a device is to become; see `deploy.provisioning.payload.make_kit`."""

    config: Path
    trust: Sequence[Path] = ()
    bundle: Path | None = None
    dashboard: bool = False


Tell = Callable[[str, str, int, int], Any]
"""Host, what is being done, how much of how much (bytes, or 0 of 0)."""


async def provision(
    host: Host, wanted: DeviceSpec, *, dry: bool, ssh_config: Path | None, tell: Tell, gathering: asyncio.Lock
) -> list[Said]:
    """Make a machine a device, or say what that would change.

    Args:
        host: which.
        wanted: what it is to become.
        dry: change nothing.
        ssh_config: instead of the user's.
        tell: told how far it is.
        gathering: held while wheels are downloaded, which many devices share.

    Raises:
        DeviceError: it cannot be reached, or cannot become one.
        ConfigError: the settings or the packages are not usable.
    """
    async with connected(host, ssh_config=ssh_config) as device:
        tell(host.name, "looking", 0, 0)
        facts = await look(device)
        tell(host.name, "packages", 0, 0)
        python, machine = (facts["python"][0], facts["python"][1]), facts["machine"]
        async with gathering:
            gathered = await asyncio.to_thread(wheels, python, machine, dashboard=wanted.dashboard)
        kit = make_kit(
            wanted.config,
            {f"{python[0]}.{python[1]}-{machine}": gathered},
            device=host.name,
            settings=host.settings,
            trust=wanted.trust,
            bundle=wanted.bundle,
        )
        await _command(device, f"umask 077; mkdir -p {FOLDER}/wheels")
        await _send(device, kit.files, lambda _done, _of: None)
        planned = await _set_up(device, "plan", tell)
        if dry or not any(said.state == "would" for said in planned):
            await _command(device, f"rm -rf {FOLDER}")
            return planned
        if any(said.step == "packages" and said.state == "would" for said in planned):
            missing = await _missing(device, kit)
            await _send(device, missing, lambda done, of: tell(host.name, "sending", done, of))
        did = await _set_up(device, "apply", tell)
        await _command(device, f"rm -rf {FOLDER}")
        return did


async def deprovision(host: Host, *, dry: bool, discard: bool, ssh_config: Path | None) -> list[Said]:
    """Take everything of edgeloop off a device.

    Args:
        host: which.
        dry: only say what would go.
        discard: also when it holds captures that were not pulled.
        ssh_config: instead of the user's.

    Raises:
        DeviceError: it cannot be reached, or holds captures.
    """
    async with connected(host, ssh_config=ssh_config) as device:
        facts = await look(device, as_it_is=True)
        if facts["captures"] and not discard and not dry:
            raise DeviceError(
                f"{host.name}: it holds {facts['captures']} captures; edgeloop deploy pull fetches them, "
                "--discard-captures lets them go"
            )
        script = (ON_DEVICE / "setup.py").read_bytes()
        arguments = ["python3", "-", "remove", *(["--dry-run"] if dry else [])]
        done = await device.run(as_root(arguments), script, timeout_s=_SETUP_S)
        return _told(device, done.exit_code, done.stdout, done.stderr)


async def look(device: Connection, *, as_it_is: bool = False) -> dict[str, Any]:
    """The facts of a machine.

    Args:
        device: a connection to it.
        as_it_is: also one that cannot become a device.

    Raises:
        DeviceError: it has no Python, we may not be root there, or it cannot become a device.
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
        hindrances = [] if as_it_is else problems(facts, now_s=time.time())
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise DeviceError(f"{device.host.name}: answered what Python does not: {done.stdout[:100]!r}") from None
    if hindrances:
        raise DeviceError(f"{device.host.name}: {'; '.join(hindrances)}")
    return facts


async def _set_up(device: Connection, verb: str, tell: Tell) -> list[Said]:
    """Run `setup.py` of the kit, and tell of each step as it is done."""
    # The home is not root's to guess: the shell of who logs in knows it.
    inner = f'cd; kit=$PWD/{FOLDER}; if [ "$(id -u)" = 0 ]; then sudo=; else sudo="sudo -n --"; fi; '
    command = f'{inner}exec $sudo python3 "$kit/setup.py" {verb} --kit "$kit"'
    told: list[Said] = []
    async with device.process(command) as process:
        process.stdin.write_eof()
        while line := await asyncio.wait_for(process.stdout.readline(), _SETUP_S):
            told += _told(device, 0, line, "")
            tell(device.host.name, told[-1].text or told[-1].step, 0, 0)
        said = await process.stderr.read()
        await process.wait_closed()
        code = -1 if process.exit_status is None else process.exit_status
    hindrances = [one.text for one in told if one.state == "problem"]
    if hindrances:
        raise DeviceError(f"{device.host.name}: {'; '.join(hindrances)}")
    if code != 0:
        raise device.failure(code, said.decode(errors="replace"))
    return told


def _told(device: Connection, exit_code: int, out: bytes, said: str) -> list[Said]:
    if exit_code != 0 and not out:
        raise device.failure(exit_code, said)
    try:
        told = [Said(**{key: str(value) for key, value in json.loads(line).items()}) for line in out.splitlines()]
    except (ValueError, TypeError, AttributeError):
        raise DeviceError(f"{device.host.name}: answered what setup.py does not: {out[:100]!r}") from None
    hindrances = [one.text for one in told if one.state == "problem"]
    if exit_code != 0:
        raise DeviceError(f"{device.host.name}: {'; '.join(hindrances) or said}")
    return told


async def _missing(device: Connection, kit: Kit) -> dict[str, Path]:
    """The wheels that are not there already, whole, from a try that broke off."""
    there = await _command(device, f"cd {FOLDER} && sha256sum wheels/*.whl 2>/dev/null || true")
    have = {name: digest for digest, _, name in (line.partition("  ") for line in there.decode().splitlines())}
    about = json.loads(kit.files["kit.json"])
    wanted = {f"wheels/{name}": digest for group in about["wheels"].values() for name, digest in group.items()}
    return {name: path for name, path in kit.wheel_paths().items() if have.get(name) != wanted[name]}


async def _send(device: Connection, files: Mapping[str, bytes | Path], tell: Callable[[int, int], Any]) -> None:
    """Files into the kit's folder, as tar, which every Linux has."""
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
                    tell(done, of)
                process.stdin.write(bytes(-sizes[name] % tarfile.BLOCKSIZE))
            process.stdin.write(bytes(2 * tarfile.BLOCKSIZE))
            process.stdin.write_eof()
        except (BrokenPipeError, ConnectionError):
            pass  # tar says why
        said = (await process.stderr.read()).decode(errors="replace")
        await process.wait_closed()
        if process.exit_status != 0:
            raise device.failure(-1 if process.exit_status is None else process.exit_status, said)


async def _command(device: Connection, command: str) -> bytes:
    done = await device.run(command)
    if done.exit_code != 0:
        raise device.failure(done.exit_code, done.stderr)
    return done.stdout
