"""`edgeloop train`."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click
from rich.console import Console

from edge_agent.preprocess import Fit

from .backbones import BACKBONES
from .train import Recipe, train


@click.command("train")
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--out", "run", required=True, type=click.Path(path_type=Path), help="Run directory to make; must not exist."
)
@click.option(
    "--backbone",
    type=click.Choice(sorted(BACKBONES)),
    default=Recipe.backbone,
    show_default=True,
    help="Network to train a head on.",
)
@click.option(
    "--image-size",
    type=click.IntRange(32, 1024),
    help="Side of the square model input in pixels; the backbone's own by default.",
)
@click.option(
    "--fit",
    type=click.Choice(get_args(Fit)),
    default=Recipe.fit,
    show_default=True,
    help="How frames become square.",
)
@click.option(
    "--epochs",
    type=click.IntRange(1),
    default=Recipe.epochs,
    show_default=True,
    help="Passes over the training pictures, at most.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=Recipe.seed,
    show_default=True,
    help="The same seed on the same machine trains the same model.",
)
@click.option("--skip-unreadable", is_flag=True, help="Leave out pictures that cannot be read, naming them.")
def train_command(data: Path, run: Path, *, skip_unreadable: bool, **choices: object) -> None:
    """Train a classifier on the photographs in DATA.

    DATA is a folder per class, or train/val/test folders of those.
    """
    trained = train(data, run, Recipe(**choices), console=Console(stderr=True), skip_unreadable=skip_unreadable)  # type: ignore[arg-type]
    click.echo(f"{100 * trained.test_accuracy:.1f} % of {trained.test_pictures} test pictures recognised")
    click.echo(f"report:  {run / 'report.html'}")
    click.echo(f"next:    edgeloop convert {run} --out NAME-VERSION.edgeloop")
