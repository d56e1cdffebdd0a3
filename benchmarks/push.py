"""Measures how much of the time of a push over a slow link is used for the transfer of the bundle.

    python -m benchmarks.push BUNDLE [--rate-mb-s 1] [--runs 5]

The device is a model store behind an SSH server on loopback (see tests/support/fleet.py). It is connected by a link
that carries ``--rate-mb-s`` megabytes per second in each direction. A push has three phases, which are measured at the
link:

- until the first byte of the bundle: connecting, and asking the device what it has
- the transfer of the bundle, which takes at least the size divided by the rate
- the work of the device: hashes, signature, and the canary test in a separate process

After each push, the same bundle is pushed a second time, and the number of bytes sent is recorded. It should be 0.
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
from tests.support.bundles import repacked
from tests.support.fleet import fleet

from .support.figures import record

NAME = "pi"
_SLICE = 8192


class Link:
    """A link that carries ``rate`` bytes per second in each direction, between a client and a port of loopback.

    Attributes:
        first_s: time at which the first full slice from the client arrived, on the clock `time.monotonic`.
        last_s: time at which the last full slice from the client was carried over the link, on the same clock.
    """

    def __init__(self, port: int, rate: float) -> None:
        self._port, self._rate = port, rate
        self.first_s = self.last_s = 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward a connection."""
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
            # If a sleep lasts too long, the next slices are sent earlier, so that the average rate is correct.
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
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgeloop-push-") as folder:
        work = Path(folder)
        versions = [
            package(repacked(arguments.bundle, work / f"{number}.edgeloop", version=str(number)))
            for number in range(1, arguments.runs + 1)
        ]
        with fleet(work, [NAME]) as devices:
            text = devices.ssh_config.read_text()
            port = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("  Port "))
            slow = work / "slow_config"
            with asyncio.Runner() as runner:
                link = Link(port, arguments.rate_mb_s * 1e6)
                server = runner.run(asyncio.start_server(link.serve, "127.0.0.1", 0))
                slow.write_text(text.replace(f"Port {port}", f"Port {server.sockets[0].getsockname()[1]}"))
                runner.run(measure(versions, arguments.rate_mb_s * 1e6, link, slow))


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
            f"{what.size / 1e6:.2f} MB: {before:.2f} s until its first byte, {moving:.2f} s transfer (lower bound "
            f"{what.size / rate:.2f}), {took - arrived:.2f} s until the model ran"
        )
        second = await push(Host(NAME, NAME), what, choices, lambda _host, _event: None)
        again.append(second.moved_bytes)
        print(f"second push: {second.state}, {second.moved_bytes} bytes sent, {second.took_s:.2f} s")
    record("transfer, share of the time until the bundle has arrived", float(np.median(shares)), at_least=0.9)
    record("transfer, share of the whole push with the canary test", float(np.median(wholes)))
    record("sent by a second push", max(again), "bytes", at_most=0)


if __name__ == "__main__":
    main()
