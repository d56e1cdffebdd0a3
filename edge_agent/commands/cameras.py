"""`edgeloop cameras`: list the cameras that the agent can use on this machine."""

from __future__ import annotations

import json

import click


@click.command("cameras")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def cameras_command(*, as_json: bool) -> None:
    """List the cameras of this machine, with the `source` to write in agent.yaml."""
    from ..cameras.listing import available

    found = available()
    if as_json:
        click.echo(json.dumps([camera._asdict() for camera in found]))
        return
    if not found:
        click.echo(
            "no camera found: no capture device at /dev/video*, and no Picamera2 camera. Network cameras and video "
            "files are not listed: set `source` to their address or path."
        )
        return
    for camera in found:
        click.echo(f"{camera.name}\n    source: {camera.source}")
        for line in camera.formats:
            click.echo(f"    {line}")
