"""The commands of this package."""

from __future__ import annotations

from pathlib import Path

import click

from ..pipelines.demo.pipeline import run_demo


@click.command("demo")
@click.option(
    "--keep", type=click.Path(path_type=Path, file_okay=False), help="Keep everything the demo makes in this directory."
)
@click.option(
    "--broker", metavar="HOST[:PORT]", help="Publish to this MQTT broker; an embedded one on loopback by default."
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of photographs, training and video."
)
def demo_command(keep: Path | None, broker: str | None, seed: int) -> None:
    """Run the whole loop on real photographs: train, quantize, bundle, agent, labels over MQTT.

    Needs no camera, broker, GPU or network. The bundle is left in the current directory.
    """
    run_demo(keep=keep, broker=broker, seed=seed)
