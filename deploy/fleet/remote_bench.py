"""Runs a benchmark on a device. Stops the agent meanwhile, and receives the report after each measurement."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.bench.report import MOST_BYTES, Failed, Report
from edge_agent.errors import DeviceError

from ..on_device.setup import COMMAND, STATE, USER
from .inventory import Host
from .ssh import Lines, LostError, as_root, connected

_SILENCE_S = 600.0
"""Allowance for waiting for the next line, in seconds, in addition to the duration of the longest measurement.

Each measurement prints one line.
"""
# A single shell, so that the agent is started again even if the connection is lost.
_SCRIPT = """\
trap "exit 1" HUP INT TERM PIPE
if systemctl -q is-active edgeloop 2>/dev/null; then trap "systemctl start edgeloop" EXIT; systemctl stop edgeloop; fi
runuser -u {user} -- {command}
"""


@dataclass(frozen=True)
class Measured:
    """A benchmark report and the path of the file in which it is saved."""

    report: Report
    path: Path


async def bench(
    host: Host,
    options: Sequence[str],
    out: Path,
    *,
    seconds: float,
    ssh_config: Path | None,
    on_progress: Callable[[str, int, int], Any],
    digest: str | None = None,
) -> Measured:
    """Measure a model on a device and save its report as ``OUT/<host>.json``, even if it is incomplete.

    Args:
        host: the device.
        options: options of `edgeloop bench`.
        out: folder for the report.
        seconds: duration of the longest measurement, in seconds.
        ssh_config: SSH configuration file that is used instead of the user's.
        on_progress: called with the device's name, the number of configurations measured so far, and 0.
        digest: digest of the bundle in the device's store that is measured; None for the device's current model.

    Raises:
        DeviceError: the device cannot be reached, has no model, or sent no valid report.
    """
    # The device's shell expands the pattern: the folder's name ends with the first digits of the digest.
    model = f"{STATE}/current" if digest is None else f"$(ls -d {STATE}/bundles/*-{digest[:12]})"
    command = f"{COMMAND} bench measure {model} {shlex.join([*options, '--json', '-'])}"
    report: Report | None = None
    try:
        async with connected(host, ssh_config=ssh_config) as device:
            script = _SCRIPT.format(user=USER, command=command)
            async with device.process(as_root(["sh", "-c", script])) as process:
                process.stdin.write_eof()
                silence_s = _SILENCE_S + seconds
                async for line in Lines(process.stdout, host, max_bytes=MOST_BYTES, silence_s=silence_s):
                    report = _report(host, line)
                    on_progress(host.name, len(report.steady), 0)
                errors = (await process.stderr.read(4096)).decode(errors="replace")
                await process.wait_closed()
                code = -1 if process.exit_status is None else process.exit_status
            if report is None:
                raise device.failure(code, errors)
    except LostError as error:
        if report is None:
            raise
        failed = (*report.failed, Failed("the rest", str(error)))
        report = msgspec.structs.replace(report, failed=failed, complete=False)
    safe = "".join(char if char.isalnum() or char in "-_." else "_" for char in host.name)
    path = out / f"{safe}.json"
    await asyncio.to_thread(_save, report, path)
    return Measured(report, path)


def _save(report: Report, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    report.save(path)


def _report(host: Host, line: bytes) -> Report:
    try:
        return msgspec.json.decode(line, type=Report)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise DeviceError(
            f"{host.name}: unexpected output instead of a report: {line[:100]!r}; is its edgeloop older than this one? "
            f"Update it with: edgeloop deploy provision {host.name}"
        ) from None
