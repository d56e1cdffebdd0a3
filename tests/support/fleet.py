"""Many simulated devices: an SSH server that leads each to a store of its own, and an agent for each."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh
import yaml

from deploy.on_device.setup import COMMAND

_ROOT = Path(__file__).parents[2]
_AGENTS_COMMAND = re.compile(rf" -- {re.escape(COMMAND)} (.*?); else ")
# As systemd does: started again whenever it ends. The service stops when its standard input is closed: at the end of
# the test, and also when the test process is killed.
_SERVICE = """\
trap 'kill $child 2>/dev/null; wait $child; exit 0' TERM
exec 3<&0
{ cat <&3 >/dev/null; kill $$; } &
while :; do
    "$@" >>"$LOG" 2>&1 &
    child=$!
    wait $child
    sleep 0.5 &
    wait $!
done
"""


@dataclass(frozen=True)
class Fleet:
    """``root`` holds a folder for each device, its own /. ``ssh_config`` leads to it by its name."""

    root: Path
    names: Sequence[str]
    ssh_config: Path

    def inventory(self) -> Path:
        """As `edgeloop deploy --inventory` takes it."""
        path = self.root / "devices.yaml"
        path.write_text(yaml.safe_dump({"hosts": {name: name for name in self.names}}))
        return path


@contextmanager
def fleet(folder: Path, names: Sequence[str], *, unreachable: Sequence[str] = ()) -> Iterator[Fleet]:
    """An SSH server on loopback, whose users are the devices.

    A real sshd is met elsewhere; hundreds of them are not what is measured with this one.

    Args:
        folder: for all of it.
        names: of the devices.
        unreachable: those nothing answers for.
    """
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(folder / "id")
    (folder / "id").chmod(0o600)
    (folder / "authorized_keys").write_text(key.export_public_key().decode())
    root = folder / "devices"
    for name in names:
        (root / name).mkdir(parents=True)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    host_key = asyncssh.generate_private_key("ssh-ed25519")

    async def listen() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[host_key],
            authorized_client_keys=str(folder / "authorized_keys"),
            process_factory=lambda process: _serve(process, root),
            encoding=None,
        )

    server = asyncio.run_coroutine_threadsafe(listen(), loop).result(30)
    public = host_key.export_public_key().decode().strip()
    (folder / "known_hosts").write_text(f"* {public}\n")
    lines = [f"Host {' '.join(unreachable)}\n  Port 1"] * bool(unreachable)
    lines += [
        "Host *",
        "  HostName 127.0.0.1",
        f"  Port {server.get_port()}",
        f"  IdentityFile {folder / 'id'}",
        f"  UserKnownHostsFile {folder / 'known_hosts'}",
    ]
    lines[:0] = [f"Host {name}\n  User {name}" for name in names]
    (folder / "ssh_config").write_text("\n".join(lines) + "\n")
    try:
        yield Fleet(root, names, folder / "ssh_config")
    finally:
        server.close()
        asyncio.run_coroutine_threadsafe(server.wait_closed(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()


@contextmanager
def agents(devices: Fleet, settings: Mapping[str, Any], *, dying: Sequence[str] = ()) -> Iterator[None]:
    """An agent on every device, each a process of its own that is started again when it ends.

    Args:
        devices: where.
        settings: agent.yaml, without ``device``.
        dying: devices whose agent is killed whenever it starts a model on probation.
    """
    running = []
    try:
        for name in devices.names:
            own = devices.root / name
            state = str(own / "var/lib/edgeloop")
            document = {"device": name, "state": state, **settings}
            (own / "agent.yaml").write_text(yaml.safe_dump(document))
            run = [sys.executable, "-m", "edge_agent.cli", "run", "--config", str(own / "agent.yaml")]
            killer = [sys.executable, "-m", "tests.support.dying_agent", state] if name in dying else []
            environment = {**os.environ, "LOG": str(own / "agent.log")}
            service = ["sh", "-c", _SERVICE, "service", *killer, *run]
            # The shell tells of each kill on its own standard error.
            running.append(
                subprocess.Popen(
                    service,
                    cwd=_ROOT,
                    env=environment,
                    start_new_session=True,
                    stdin=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
            )
        yield
    finally:
        for process in running:
            assert process.stdin is not None
            process.stdin.close()
        for process in running:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


async def _serve(process: asyncssh.SSHServerProcess[bytes], root: Path) -> None:
    """Run what is asked of the device's `edgeloop` with this one, upon the device's own root."""
    asked = _AGENTS_COMMAND.search(process.command or "")
    if asked is None:
        process.exit(0)  # it wants the service started, which looks after itself
        return
    own = root / process.get_extra_info("username")
    command = [sys.executable, "-m", "edge_agent.cli", *shlex.split(asked[1]), "--root", str(own)]
    pipe = asyncio.subprocess.PIPE
    running = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
    await process.redirect(stdin=running.stdin, stdout=running.stdout, stderr=running.stderr)
    process.exit(await running.wait())
    await process.wait_closed()
