"""Devices that answer rubbish: each is named in its own row, and the others are served as if it were not there."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncssh
import pytest

from deploy.commands._hosts import each
from deploy.fleet.inventory import Host
from deploy.fleet.pull import pull
from deploy.fleet.push import Choices, Package, roll_back
from deploy.fleet.rollout import roll_out
from deploy.fleet.ssh import connected
from edge_agent.errors import DeviceError
from edge_agent.store.state import StoreStatus

from ..conftest import Run

GOOD = {"name": "ground", "version": "1", "digest": "ab" * 32, "status": "good"}
STATUS = {"current": GOOD, "previous": None, "on_probation": False, "installed": [GOOD], "failures": []}
RUBBISH = {
    "nothing": b"",
    "a line of the login shell": b"Welcome to the porch!\n",
    "null": b"null\n",
    "a list": b"[]\n",
    "a text": b'"x"\n',
    "other fields": b'{"name": 5, "version": ["1"], "current": true, "event": 3}\n',
    "no UTF-8": b'{"name": "\xff\xfe", "version": "1"}\n',
    "deep": b"[" * 200_000 + b"\n",
    "large": b"x" * (6 * 2**20) + b"\n",
    "numbers": b'{"event": "have", "done": 1e400, "of": -1}\n',
    "a huge number": b"9" * 10_000 + b"\n",
}

Answer = Callable[[str, asyncssh.SSHServerProcess[bytes]], "bytes | None"]


@contextmanager
def devices(folder: Path, answer: Answer) -> Iterator[Path]:
    """An SSH server whose users are devices; yields the SSH configuration that leads to them."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    host_key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(folder / "id")
    (folder / "id").chmod(0o600)
    (folder / "authorized_keys").write_text(key.export_public_key().decode())
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def serve(process: asyncssh.SSHServerProcess[bytes]) -> None:
        output = answer(process.get_extra_info("username"), process)
        try:
            process.stdout.write(output or b"")
            await process.stdout.drain()
        except (BrokenPipeError, ConnectionError, asyncssh.Error):
            return
        process.exit(0)

    async def listen() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[host_key],
            authorized_client_keys=str(folder / "authorized_keys"),
            process_factory=serve,
            encoding=None,
        )

    server = asyncio.run_coroutine_threadsafe(listen(), loop).result(30)
    (folder / "known_hosts").write_text(f"* {host_key.export_public_key().decode()}")
    lines = [f"Host {name}\n  User {name}" for name in ("good", "bad")]
    lines += ["Host *", "  HostName 127.0.0.1", f"  Port {server.get_port()}", f"  IdentityFile {folder / 'id'}"]
    lines += [f"  UserKnownHostsFile {folder / 'known_hosts'}"]
    (folder / "ssh_config").write_text("\n".join(lines) + "\n")
    try:
        yield folder / "ssh_config"
    finally:
        server.close()
        asyncio.run_coroutine_threadsafe(server.wait_closed(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()


HOSTS = [Host("bad", "bad"), Host("good", "good")]


@pytest.mark.parametrize("what", RUBBISH)
def test_a_table_has_a_row_for_each_device(tmp_path: Path, what: str, edgeloop: Run) -> None:
    def answer(name: str, _process: asyncssh.SSHServerProcess[bytes]) -> bytes:
        return RUBBISH[what] if name == "bad" else json.dumps(STATUS).encode()

    with devices(tmp_path, answer) as config:
        ran = edgeloop("deploy", "status", "bad", "good", "--ssh-config", config)
        assert ran.code == 1
        assert "ground 1" in ran.out
        assert "edgeloop: bad: " in ran.err
        assert "Traceback" not in ran.err

        async def ask(host: Host) -> str:
            return await roll_back(host, "a test", ssh_config=config)

        (_, refused), (_, _went) = each(HOSTS, ask)
        assert isinstance(refused, DeviceError)
        assert str(refused).startswith("bad: ")


def test_what_a_device_says_cannot_steer_the_terminal(tmp_path: Path, edgeloop: Run) -> None:
    evil = {**GOOD, "name": "[red]\x1b]0;taken\x07", "status": "failed", "reason": "\x1b[2J[bold]"}
    status = {**STATUS, "current": evil, "previous": evil}

    with devices(tmp_path, lambda _name, _process: json.dumps(status).encode()) as config:
        ran = edgeloop("deploy", "status", "bad", "--ssh-config", config)
    assert "\x1b" not in ran.out + ran.err
    assert "[red]" in ran.out, "markup is shown as it is"


@pytest.mark.parametrize("what", [*RUBBISH, "the bundle again and again"])
def test_a_rollout_ends_whatever_a_device_sends(tmp_path: Path, what: str) -> None:
    (tmp_path / "x.edgeloop").write_bytes(bytes(1000))
    package = Package(tmp_path / "x.edgeloop", "x 1", "ab" * 32, "cd" * 32, 1000)
    again = b'{"event": "have", "done": 0, "of": 1000, "before": ""}\n'
    said = {**RUBBISH, "the bundle again and again": again * 3}[what]

    def answer(name: str, _process: asyncssh.SSHServerProcess[bytes]) -> bytes:
        return said if name == "bad" else again + b'{"event": "good", "model": "x 1"}\n'

    with devices(tmp_path, answer) as config:
        choices = Choices(ssh_config=config, watch_s=1)
        rollout = asyncio.run(
            roll_out(HOSTS, package, choices, plan="2", tolerate=0.5, on_event=lambda _name, _event: None)
        )
    states = {outcome.host: outcome.state for outcome in rollout.outcomes}
    assert states["good"] == "good"
    assert states["bad"] in ("refused", "unreachable")


def archive(name: str, size: int, kind: bytes = tarfile.REGTYPE, content: bytes = b"") -> bytes:
    """A tar archive whose header claims a size."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT) + content + bytes(1024)


LISTED = b'{"name": "2026-12-01/20261201T000000000Z-door-0", "sha256": "%s", "size": 10}\n' % (b"ab" * 32)
PULLS = {
    **{f"list: {name}": (said, b"") for name, said in RUBBISH.items() if name != "nothing"},
    "a size that fits nowhere": (LISTED.replace(b"10}", b"%d}" % 10**15), b""),
    "a name that leads out": (LISTED.replace(b"2026-12-01/20261201T000000000Z-door-0", b"../../etc/passwd"), b""),
    **{f"archive: {name}": (LISTED, said) for name, said in RUBBISH.items() if name != "nothing"},
    "a file that was not asked for": (LISTED, archive("2026-12-01/other.jpg", 0)),
    "a path that leads out": (LISTED, archive("../../../root/x.jpg", 0)),
    "a link": (LISTED, archive("2026-12-01/20261201T000000000Z-door-0.jpg", 0, tarfile.SYMTYPE)),
    "a header that claims much": (LISTED, archive("2026-12-01/20261201T000000000Z-door-0.json", 2**40)),
    "a header that claims less than nothing": (LISTED, archive("2026-12-01/20261201T000000000Z-door-0.json", -5)),
}


@pytest.mark.parametrize("what", PULLS)
def test_a_pull_ends_whatever_a_device_sends(tmp_path: Path, what: str) -> None:
    listed, sent = PULLS[what]

    def answer(_name: str, process: asyncssh.SSHServerProcess[bytes]) -> bytes:
        return listed if "captures list" in (process.command or "") else sent

    before = set(tmp_path.parent.iterdir())
    with devices(tmp_path, answer) as config:

        async def fetch(host: Host) -> object:
            return await pull(
                host, tmp_path / "captures", keep=True, ssh_config=config, on_progress=lambda _name, _done, _of: None
            )

        ((_, result),) = each(HOSTS[:1], fetch)
    assert isinstance(result, DeviceError) or getattr(result, "damaged", None) == (
        "2026-12-01/20261201T000000000Z-door-0",
    ), result
    assert [path for path in (tmp_path / "captures").rglob("*") if path.is_file()] == []
    assert set(tmp_path.parent.iterdir()) == before


def test_output_is_bounded_while_it_is_read(tmp_path: Path) -> None:
    with devices(tmp_path, lambda _name, _process: bytes(40 * 2**20)) as config:

        async def ask(host: Host) -> StoreStatus:
            async with connected(host, ssh_config=config) as device:
                return await device.ask(StoreStatus, "status", "--json")

        ((_, result),) = each(HOSTS[:1], ask)
    assert isinstance(result, DeviceError)
    assert "sends more than 4194304 bytes" in str(result)


def test_what_is_right_arrives(tmp_path: Path) -> None:
    """So that the tests above do not pass for nothing."""
    import hashlib

    image = b"\xff\xd8 an image"
    sha256 = hashlib.sha256(image).hexdigest().encode()
    record = json.dumps(
        {
            "v": 1, "device": "bad", "camera": "a", "captured_at": "2026-12-01T00:00:00.000Z", "seq": 0, "label": "b",
            "scores": {"b": 1.0}, "reason": "random", "sha256": sha256.decode(), "width": 8, "height": 8,
            "model": {"name": "m", "version": "1", "digest": "0"},
        }
    ).encode()  # fmt: skip
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for kind, content in (("json", record), ("jpg", image)):
            entry = tarfile.TarInfo(f"2026-12-01/20261201T000000000Z-door-0.{kind}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    listed = LISTED.replace(b"ab" * 32, sha256)

    def answer(_name: str, process: asyncssh.SSHServerProcess[bytes]) -> bytes:
        command = process.command or ""
        return listed if "captures list" in command else file.getvalue() if "captures send" in command else b"1\n"

    with devices(tmp_path, answer) as config:

        async def fetch(host: Host) -> object:
            return await pull(
                host, tmp_path / "captures", keep=True, ssh_config=config, on_progress=lambda _name, _done, _of: None
            )

        ((_, result),) = each(HOSTS[:1], fetch)
    assert getattr(result, "fetched", result) == 1
