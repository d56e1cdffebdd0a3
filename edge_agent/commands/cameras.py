"""`edgeloop cameras`: what the agent could look through here."""

from __future__ import annotations

import json

import click


@click.command("cameras")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def cameras_command(*, as_json: bool) -> None:
    """List the cameras of this machine and what to write in agent.yaml."""
    from ..cameras.listing import available

    found = available()
    if as_json:
        click.echo(json.dumps([camera._asdict() for camera in found]))
        return
    if not found:
        click.echo(
            "no camera found: no /dev/video* that captures, and none that Picamera2 knows. Network cameras and video "
            "files need no listing: write their address or path as source."
        )
        return
    for camera in found:
        click.echo(f"{camera.name}\n    source: {camera.source}")
        for line in camera.formats:
            click.echo(f"    {line}")
