"""`edgeloop status`: show the models installed on this device and their state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ._store_options import find_store, store_options
from .install import canary_summary

if TYPE_CHECKING:
    from ..store.model_store import Installed, StoreStatus


@click.command("status")
@store_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status_command(config: Path | None, root: Path, *, as_json: bool) -> None:
    """Show this device's models: the current one, the one to roll back to, and those that failed, with the reason."""
    import msgspec

    from ..store.model_store import ModelStore

    location = find_store(config, root)
    status = ModelStore(location.state).status()
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(status), indent=2).decode())
    elif not status.installed:
        click.echo(f"no model is installed in {location.state}; install one with: edgeloop install BUNDLE")
    else:
        click.echo("\n".join(_lines(status)))


def _lines(status: StoreStatus) -> list[str]:
    lines = []
    for one in status.installed:
        links = [name for name, linked in (("current", status.current), ("previous", status.previous)) if linked == one]
        lines += [
            f"{one}{': ' if links else ''}{', '.join(links)}",
            *(f"  {name:<11} {value}" for name, value in _facts(one)),
        ]
    installed = {one.digest for one in status.installed}
    lines += [
        f"{failure.name} {failure.version} ({failure.digest[:12]}): removed, failed on {failure.at}: {failure.reason}"
        for failure in status.failures
        if failure.digest not in installed
    ]
    return lines


def _facts(one: Installed) -> list[tuple[str, str]]:
    starts = f", {one.starts} unfinished starts" if one.status == "probation" and one.starts else ""
    signed = f"signed by {one.signer}" if one.signer else "no verified signer"
    return [
        ("state", f"{one.status}{starts}"),
        *([("reason", one.reason)] if one.reason else []),
        ("installed", f"{one.installed_at or 'unknown'}, {signed}"),
        ("canary", canary_summary(one)),
    ]
