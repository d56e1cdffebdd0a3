"""`edgeloop receive`: the device side of `edgeloop deploy push`."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import EdgeloopError, one_line
from ._store_options import find_store, store_options

if TYPE_CHECKING:
    from ..store.receive import PushEvent

_HEX = 64


def _hash(_context: click.Context, _option: click.Parameter, value: str) -> str:
    value = value.lower()
    if len(value) != _HEX or set(value) - set("0123456789abcdef"):
        raise click.BadParameter(f"expected {_HEX} hexadecimal digits")
    return value


@click.command("receive")
@store_options
@click.option("--digest", required=True, callback=_hash, help="SHA-256 of the bundle's manifest.")
@click.option("--sha256", required=True, callback=_hash, help="SHA-256 of the bundle file.")
@click.option("--size", required=True, type=click.IntRange(1), help="Size of the bundle file in bytes.")
@click.option("--no-activate", is_flag=True, help="Store the bundle, but keep the current model.")
@click.option("--force", is_flag=True, help="Accept a bundle that was rolled back on this device.")
@click.option("--allow-downgrade", is_flag=True, help="Accept a bundle older than one that was accepted before.")
@click.option(
    "--watch-s", type=click.FloatRange(0, 86400), default=0, help="Seconds to wait for the end of its probation."
)
def receive_command(
    config: Path | None,
    root: Path,
    digest: str,
    sha256: str,
    size: int,
    watch_s: float,
    *,
    no_activate: bool,
    force: bool,
    allow_downgrade: bool,
) -> None:
    """Read a bundle from standard input, run its canary test and make it current; report progress as lines of JSON.

    `edgeloop deploy push` calls this command over SSH. After a broken connection, the transfer resumes where it
    stopped.
    """
    import msgspec

    from ..store.canary import CanaryLimits
    from ..store.model_store import ModelStore
    from ..store.receive import AnnouncedBundle, PushEvent, received, watch

    disconnected = False

    def emit(event: PushEvent) -> None:
        # If the sender disconnects, an installation whose bundle has arrived continues.
        nonlocal disconnected
        try:
            if not disconnected:
                os.write(1, msgspec.json.encode(event) + b"\n")
        except BrokenPipeError:
            disconnected = True

    def emit_or_exit(event: PushEvent) -> None:
        emit(event)
        if disconnected:
            sys.exit(1)

    location = find_store(config, root)
    store = ModelStore(location.state)

    def install(bundle: Path) -> str:
        installed = store.install(
            bundle,
            signers=location.signers,
            activate=not no_activate,
            force=force,
            allow_downgrade=allow_downgrade,
            limits=CanaryLimits(threads=location.threads, delegate=location.delegate),
            progress=lambda done, of: emit(PushEvent("proving", done, of)),
        )
        return str(installed)

    try:
        stored = None if force else store.find_whole(digest)
        if stored is not None:
            current = store.current()
            emit(PushEvent("have", size, size, before="" if current is None else current.digest))
            model = install(Path(stored.path))
        else:
            with received(store, AnnouncedBundle(digest, sha256, size), sys.stdin.buffer, emit) as bundle:
                model = install(bundle)
    except (EdgeloopError, OSError) as error:
        # The name of the partial file would mean nothing to the sender.
        emit(PushEvent("refused", text=re.sub(r"\S*/incoming/[0-9a-f]{64}\.part", "the bundle", one_line(error))))
        sys.exit(1)
    emit(PushEvent("installed", model=model))
    if watch_s and not no_activate and not watch(store, digest, emit_or_exit, timeout_s=watch_s):
        sys.exit(1)
