"""A push over a slow link: how much of its time moves the bundle's bytes, and what a second push moves.

    python -m benchmarks.push BUNDLE [--rate-mb-s 1] [--runs 5]

The device is a store of its own behind an SSH server on loopback (see tests/support/fleet.py); between it and the
desktop is a link that carries RATE megabytes a second each way. Three parts of a push, told apart at the link: until
the first of the bundle's bytes (connecting, asking what is there), moving them, and what the device does with them
(hashes, signature, canary images in a process of its own). The bound is the size over the rate.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from deploy.fleet.inventory import Host
from deploy.fleet.push import Choices, Package, package, push
from tests.edge_agent.store.test_store import repacked
from tests.support.fleet import fleet

from .support.figures import tell

NAME = "pi"
_SLICE = 8192


class Link:
    """A link of so many bytes a second each way, and when the device got the first and the last full slice."""

    def __init__(self, port: int, rate: float) -> None:
        self._port, self._rate = port, rate
        self.first_s = self.last_s = 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry a connection."""
        with suppress(ConnectionError, asyncio.CancelledError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
            self.first_s = 0.0
            await asyncio.gather(
                self._carry(reader, far_writer, timed=True), self._carry(far_reader, writer, timed=False)
            )

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, timed: bool) -> None:
        free_at = time.monotonic()
        while data := await reader.read(_SLICE):
            if timed and len(data) == _SLICE:
                self.first_s = self.first_s or time.monotonic()
            # A sleep that lasts a little too long is made up for: the rate is that of the whole.
            free_at = max(free_at, time.monotonic() - 0.05) + len(data) / self._rate
            await asyncio.sleep(max(0.0, free_at - time.monotonic()))
            if timed and len(data) == _SLICE:
                self.last_s = time.monotonic()
            writer.write(data)
            await writer.drain()
        writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rate-mb-s", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgeloop-push-") as folder:
        work = Path(folder)
        versions = [
            package(repacked(given.bundle, work / f"{number}.edgeloop", version=str(number)))
            for number in range(1, given.runs + 1)
        ]
        with fleet(work, [NAME]) as devices:
            text = devices.ssh_config.read_text()
            port = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("  Port "))
            slow = work / "slow_config"
            with asyncio.Runner() as runner:
                link = Link(port, given.rate_mb_s * 1e6)
                server = runner.run(asyncio.start_server(link.serve, "127.0.0.1", 0))
                slow.write_text(text.replace(f"Port {port}", f"Port {server.sockets[0].getsockname()[1]}"))
                runner.run(measure(versions, given.rate_mb_s * 1e6, link, slow))


async def measure(versions: list[Package], rate: float, link: Link, ssh_config: Path) -> None:
    choices, shares, wholes, again = Choices(watch_s=0, ssh_config=ssh_config), [], [], []
    for what in versions:
        start = time.monotonic()
        outcome = await push(Host(NAME, NAME), what, choices, lambda _host, _event: None)
        took = time.monotonic() - start
        assert outcome.state == "active", outcome
        before, moving, arrived = link.first_s - start, link.last_s - link.first_s, link.last_s - start
        shares.append(moving / arrived)
        wholes.append(moving / took)
        print(
            f"{what.size / 1e6:.2f} MB: {before:.2f} s until its first byte, {moving:.2f} s moving it (bound "
            f"{what.size / rate:.2f}), {took - arrived:.2f} s until it ran"
        )
        second = await push(Host(NAME, NAME), what, choices, lambda _host, _event: None)
        again.append(second.moved_bytes)
        print(f"the same again: {second.state}, {second.moved_bytes} bytes moved, {second.took_s:.2f} s")
    tell("moving the bundle, of the time until it is there", float(np.median(shares)), at_least=0.9)
    tell("moving the bundle, of the whole push with the device's proof", float(np.median(wholes)))
    tell("moved by a second push", max(again), "bytes", at_most=0)


if __name__ == "__main__":
    main()
