"""`edgeloop receive`: the device's end of `edgeloop deploy push`."""

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
@click.option("--digest", required=True, callback=_hash, help="Of the bundle's manifest.")
@click.option("--sha256", required=True, callback=_hash, help="Of the bundle's file.")
@click.option("--size", required=True, type=click.IntRange(1), help="Of the bundle's file, bytes.")
@click.option("--no-activate", is_flag=True, help="Only store it; the current model stays.")
@click.option("--force", is_flag=True, help="Also a bundle that was rolled back on this device.")
@click.option("--allow-downgrade", is_flag=True, help="Also one older than the model that runs.")
@click.option(
    "--watch-s", type=click.FloatRange(0, 86400), default=0, help="Seconds to follow it through its probation."
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
    """Take a bundle from standard input, prove it and make it current; tell of it in lines of JSON.

    `edgeloop deploy push` speaks to it. Bytes that came before the connection broke are not asked for again.
    """
    import msgspec

    from ..store.canary import CanaryLimits
    from ..store.model_store import ModelStore
    from ..store.receive import AnnouncedBundle, PushEvent, received, watch

    gone = False

    def emit(event: PushEvent) -> None:
        # A sender who goes away does not stop an installation that has all it needs.
        nonlocal gone
        try:
            if not gone:
                os.write(1, msgspec.json.encode(event) + b"\n")
        except BrokenPipeError:
            gone = True

    def watched(event: PushEvent) -> None:
        emit(event)
        if gone:
            sys.exit(1)

    place = find_store(config, root)
    store = ModelStore(place.state)

    def installed(bundle: Path) -> str:
        one = store.install(
            bundle,
            signers=place.signers,
            activate=not no_activate,
            force=force,
            allow_downgrade=allow_downgrade,
            limits=CanaryLimits(threads=place.threads, delegate=place.delegate),
            progress=lambda done, of: emit(PushEvent("proving", done, of)),
        )
        return str(one)

    try:
        here = None if force else store.here(digest)
        if here is not None:
            current = store.current()
            emit(PushEvent("have", size, size, before="" if current is None else current.digest))
            model = installed(Path(here.path))
        else:
            with received(store, AnnouncedBundle(digest, sha256, size), sys.stdin.buffer, emit) as bundle:
                model = installed(bundle)
    except (EdgeloopError, OSError) as error:
        # Its name in here tells nobody anything.
        emit(PushEvent("refused", text=re.sub(r"\S*/incoming/[0-9a-f]{64}\.part", "the bundle", one_line(error))))
        sys.exit(1)
    emit(PushEvent("installed", model=model))
    if watch_s and not no_activate and not watch(store, digest, watched, timeout_s=watch_s):
        sys.exit(1)
