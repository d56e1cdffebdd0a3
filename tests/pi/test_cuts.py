"""A push cut anywhere: the device runs the old model or the new one, and the next push goes through."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from deploy.fleet.inventory import Host
from deploy.fleet.push import Choices, Outcome, package, push
from edge_agent.bundle import open_bundle
from edge_agent.store.model_store import ModelStore
from edge_agent.store.receive import PushEvent

from ..conftest import Run, wait_until
from ..support.bundles import repacked
from ..support.stores import assert_sound
from .root import Pi, processes

pytestmark = [pytest.mark.needs("root", "index"), pytest.mark.timeout(900)]

CUTS = int(os.environ.get("EDGELOOP_CUTS", "16"))
HOST = Host("raspberrypi", "raspberrypi")


@pytest.fixture(scope="module")
def device(near: Pi, edgeloop: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pi]:
    """A provisioned one, with a small disk of its own for models."""
    state = near.root / "var/lib/edgeloop"
    state.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(state)], check=True)
    settings = tmp_path_factory.mktemp("settings") / "agent.yaml"
    settings.write_text(yaml.safe_dump({"cameras": {"door": {"source": "/srv/none.avi"}}, "threads": 1}))
    ran = edgeloop("deploy", "provision", "-F", near.ssh_config, "raspberrypi", "--config", settings)
    assert ran.code == 0, ran.err
    yield near
    subprocess.run(["umount", "-l", str(state)], check=True)
    # Others want the machine as it came.
    ran = edgeloop("deploy", "deprovision", "-F", near.ssh_config, "raspberrypi", "--yes")
    assert ran.code == 0, ran.err


class Wire:
    """A TCP connection between desktop and device that breaks once, after so many bytes towards the device."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.left = 1 << 60
        self.cuts = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._to))
            threading.Thread(target=self._pump, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, False), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, counted: bool) -> None:  # noqa: FBT001
        with suppress(OSError):
            while data := source.recv(16384):
                if counted and len(data) > self.left:
                    target.sendall(data[: self.left])
                    self.left = 1 << 60
                    self.cuts += 1
                    break
                self.left -= len(data) if counted else 0
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextmanager
def wired(pi: Pi, folder: Path) -> Iterator[tuple[Wire, Path]]:
    """A wire, and the ssh_config that goes through it."""
    wire = Wire(pi.port)
    key = pi.root / "etc/ssh/ssh_host_ed25519_key.pub"
    (folder / "known").write_text(f"[127.0.0.1]:{wire.port} {key.read_text()}")
    text = pi.ssh_config.read_text().replace(f"Port {pi.port}", f"Port {wire.port}")
    lines = [f"  UserKnownHostsFile {folder / 'known'}" if "UserKnown" in line else line for line in text.splitlines()]
    (folder / "config").write_text("\n".join(lines) + "\n")
    try:
        yield wire, folder / "config"
    finally:
        wire.close()


def pushed(bundle: Path, config: Path) -> Outcome:
    choices = Choices(watch_s=0, ssh_config=config)
    return asyncio.run(push(HOST, package(bundle), choices, lambda _host, _event: None))


def agents_processes(pi: Pi) -> list[int]:
    """Those of the device's own user."""
    owner = (pi.root / "var/lib/edgeloop").stat().st_uid
    found = []
    for pid in processes(pi.root):
        with suppress(OSError):
            if Path(f"/proc/{pid}").stat().st_uid == owner:
                found.append(pid)
    return found


def test_cut_anywhere_the_old_or_the_new_model_runs(device: Pi, bundle_file: Path, tmp_path: Path) -> None:
    chance = random.Random(7)
    state = device.root / "var/lib/edgeloop"
    store = ModelStore(state)
    first = repacked(bundle_file, tmp_path / "0.edgeloop", version="0")
    assert pushed(first, device.ssh_config).state == "active"
    old, ends = open_bundle(first).digest, {"old": 0, "new": 0}
    with wired(device, tmp_path) as (wire, config):
        for number in range(1, CUTS + 1):
            bundle = repacked(bundle_file, tmp_path / f"{number}.edgeloop", version=str(number))
            what = package(bundle)
            (_cut_connection, _kill_desktop, _kill_device, _fill_disk)[number % 4](
                device, what.path, what.size, chance, wire, config
            )
            wait_until(lambda: not agents_processes(device), 30, "what was begun to end")
            current = store.current()
            assert current is not None
            assert current.digest in (old, what.digest)
            assert (state / "current").resolve() == Path(current.path)
            assert open_bundle(state / "current").digest == current.digest
            ends["old" if current.digest == old else "new"] += 1
            outcome = pushed(bundle, device.ssh_config)
            assert outcome.state == "active", outcome
            if current.digest == what.digest:
                assert outcome.moved_bytes == 0
            assert_sound(state)
            assert not list((state / "incoming").iterdir())
            old = what.digest
            bundle.unlink()
    # Both ends were met, or the cuts were not where they should be.
    assert min(ends.values()) >= max(1, CUTS // 10), ends


def _cut_connection(pi: Pi, bundle: Path, size: int, chance: random.Random, wire: Wire, config: Path) -> None:
    """The connection breaks; the same push takes it up again by itself."""
    before = wire.cuts
    wire.left = chance.randrange(int(1.02 * size))
    outcome = pushed(bundle, config)
    assert outcome.state == "active", outcome
    assert wire.cuts == before + 1 or outcome.moved_bytes == size
    # What came before the break was not sent again, but for what was under way.
    assert outcome.moved_bytes < size + 5 * 2**20


def _kill_desktop(pi: Pi, bundle: Path, size: int, chance: random.Random, wire: Wire, config: Path) -> None:
    command = [sys.executable, "-m", "edge_agent.cli", "deploy", "push", str(bundle), "raspberrypi", "--no-wait"]
    running = subprocess.Popen([*command, "-F", str(pi.ssh_config)], stdout=subprocess.DEVNULL)
    time.sleep(chance.uniform(0.5, 2.0))
    running.kill()
    running.wait()


def _kill_device(pi: Pi, bundle: Path, size: int, chance: random.Random, wire: Wire, config: Path) -> None:
    """Everything of the agent's user dies at a moment, as in a power cut that the disk survives."""
    moment = chance.choice(["have", "proving", "installed", "late"])
    least = chance.randrange(size)
    killed = False

    async def run() -> None:
        def tell(_host: str, event: PushEvent) -> None:
            if event.event == moment and (moment != "have" or event.done > least):
                kill()

        def kill() -> None:
            nonlocal killed
            for pid in () if killed else agents_processes(pi):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed = True

        pushing = asyncio.create_task(push(HOST, package(bundle), Choices(watch_s=0, ssh_config=pi.ssh_config), tell))
        if moment == "late":
            await asyncio.sleep(chance.uniform(0.3, 1.2))
            kill()
        await pushing

    asyncio.run(run())


def _fill_disk(pi: Pi, bundle: Path, size: int, chance: random.Random, wire: Wire, config: Path) -> None:
    """The disk is full while bytes come in, or will be when they are unpacked."""
    state = pi.root / "var/lib/edgeloop"
    filler = state / "filler"
    room = os.statvfs(state)
    left = int(chance.uniform(0, 3.5) * size)
    with open(filler, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, room.f_bavail * room.f_frsize - left))
    try:
        outcome = pushed(bundle, pi.ssh_config)
        assert outcome.state in ("refused", "active"), outcome
        if outcome.state == "refused":
            assert "free" in outcome.text or "space" in outcome.text, outcome
    finally:
        filler.unlink()
