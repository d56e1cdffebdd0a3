"""`edgeloop captures`: the device side of `edgeloop deploy pull`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ..errors import CommandError
from ._store_options import find_store, store_options


@click.group("captures")
def captures_command() -> None:
    """List, send and remove the frames that were saved for retraining.

    `edgeloop deploy pull` calls these commands over SSH.
    """


@captures_command.command("list")
@store_options
def list_command(config: Path | None, root: Path) -> None:
    """Print one line of JSON per capture: name, sha256 and size of the image."""
    import msgspec

    from ..captures.transfer import list_captures

    out = sys.stdout.buffer
    for capture in list_captures(_folder(config, root)):
        out.write(msgspec.json.encode(capture) + b"\n")


@captures_command.command("send")
@store_options
def send_command(config: Path | None, root: Path) -> None:
    """Read names from standard input, one per line, and write these captures to standard output as a tar archive."""
    from ..captures.transfer import send

    send(_folder(config, root), (line.rstrip("\n") for line in sys.stdin), sys.stdout.buffer)


@captures_command.command("remove")
@store_options
def remove_command(config: Path | None, root: Path) -> None:
    """Remove the captures listed on standard input, in the format of `list`; a capture that has changed is kept."""
    import msgspec

    from ..captures.transfer import StoredCapture, remove

    try:
        given = [msgspec.json.decode(line, type=StoredCapture) for line in sys.stdin.buffer]
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CommandError(f"standard input: expected lines from `edgeloop captures list`: {error}") from error
    click.echo(remove(_folder(config, root), given))


def _folder(config: Path | None, root: Path) -> Path:
    return find_store(config, root).state / "captures"
