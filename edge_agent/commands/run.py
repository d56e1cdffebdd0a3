"""`edgeloop run`: run the agent until it is stopped."""

from __future__ import annotations

from pathlib import Path

import click

from ..agent.service import run
from ..config import DEFAULT_PATH


@click.command("run")
@click.option(
    "--config", type=click.Path(path_type=Path), default=DEFAULT_PATH, show_default=True, help="Settings of the agent."
)
@click.option("--threads", type=click.IntRange(1, 64), help="Inference threads; overrides agent.yaml.")
@click.option("--delegate", help="Shared library of an external delegate; overrides agent.yaml.")
def run_command(config: Path, threads: int | None, delegate: str | None) -> None:
    """Classify camera frames and publish labels over MQTT until stopped."""
    run(config, threads=threads, delegate=delegate)
