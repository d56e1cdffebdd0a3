"""`edgeloop run`: the agent as a process, from agent.yaml to a clean end."""

from __future__ import annotations

from pathlib import Path

import click

from ..agent.service import run
from ..config import DEFAULT_PATH


@click.command("run")
@click.option(
    "--config", type=click.Path(path_type=Path), default=DEFAULT_PATH, show_default=True, help="The agent's settings."
)
@click.option("--threads", type=click.IntRange(1, 64), help="Inference threads, instead of agent.yaml's.")
@click.option("--delegate", help="Shared library of an external delegate, instead of agent.yaml's.")
def run_command(config: Path, threads: int | None, delegate: str | None) -> None:
    """Classify what the cameras see and publish labels over MQTT, until stopped."""
    run(config, threads=threads, delegate=delegate)
