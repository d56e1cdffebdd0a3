"""`edgeloop captures`: the device's end of `edgeloop deploy pull`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ..errors import CommandError
from ._store_options import find_store, store_options


@click.group("captures")
def captures_command() -> None:
    """Frames kept for retraining: list them, send them, remove those that are safe elsewhere.

    `edgeloop deploy pull` speaks to these.
    """


@captures_command.command("list")
@store_options
def list_command(config: Path | None, root: Path) -> None:
    """A line of JSON for each: name, sha256 and size of the image."""
    import msgspec

    from ..captures.transfer import held

    out = sys.stdout.buffer
    for capture in held(_folder(config, root)):
        out.write(msgspec.json.encode(capture) + b"\n")


@captures_command.command("send")
@store_options
def send_command(config: Path | None, root: Path) -> None:
    """Write the captures named on standard input, a line each, to standard output as tar."""
    from ..captures.transfer import send

    send(_folder(config, root), (line.rstrip("\n") for line in sys.stdin), sys.stdout.buffer)


@captures_command.command("remove")
@store_options
def remove_command(config: Path | None, root: Path) -> None:
    """Remove the captures that standard input gives, lines as `list` prints; those that changed since stay."""
    import msgspec

    from ..captures.transfer import StoredCapture, remove

    try:
        given = [msgspec.json.decode(line, type=StoredCapture) for line in sys.stdin.buffer]
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CommandError(f"expected lines as `edgeloop captures list` prints them: {error}") from error
    click.echo(remove(_folder(config, root), given))


def _folder(config: Path | None, root: Path) -> Path:
    return find_store(config, root).state / "captures"
