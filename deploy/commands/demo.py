"""`edgeloop demo`."""

from __future__ import annotations

from pathlib import Path

import click

from ..pipelines.demo.pipeline import run_demo


@click.command("demo")
@click.option(
    "--keep", type=click.Path(path_type=Path, file_okay=False), help="Keep all files of the demo in this directory."
)
@click.option(
    "--broker", metavar="HOST[:PORT]", help="MQTT broker to publish to; by default an embedded one on loopback."
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Random seed for images, training and video."
)
def demo_command(keep: Path | None, broker: str | None, seed: int) -> None:
    """Run the whole pipeline on real photographs: train, quantize, bundle, agent, labels over MQTT.

    Needs no camera, broker, GPU or network. Writes the bundle to the current directory.
    """
    run_demo(keep=keep, broker=broker, seed=seed)
