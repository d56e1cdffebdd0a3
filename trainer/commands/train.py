"""`edgeloop train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click
from rich.console import Console

from edge_agent.preprocessing import Fit

from ..backbones import BACKBONES
from ..pipeline import Reading, assist, train
from ..training.checkpoint import unfinished_path
from ..training.distribution import TeamLostError, form_team, leave
from ..training.recipe import FineTune, Precision, Recipe


@click.command("train")
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--out", "run", required=True, type=click.Path(path_type=Path), help="Run directory to create; must not exist."
)
@click.option(
    "--backbone",
    default=Recipe.backbone,
    show_default=True,
    help=f"Network to build on: {', '.join(BACKBONES)}, kerashub:PRESET or savedmodel:PATH.",
)
@click.option(
    "--weights",
    default=Recipe.weights,
    show_default=True,
    metavar="auto|package|imagenet|none|FILE",
    help="Initial weights of the backbone.",
)
@click.option(
    "--image-size",
    type=click.IntRange(32, 1024),
    help="Side of the square model input in pixels; the backbone's default if not given.",
)
@click.option(
    "--fit",
    type=click.Choice(get_args(Fit)),
    default=Recipe.fit,
    show_default=True,
    help="How images are fitted to the square model input.",
)
@click.option(
    "--fine-tune",
    type=click.Choice(get_args(FineTune)),
    default=Recipe.fine_tune,
    show_default=True,
    help="Part of the backbone that is trained after the head.",
)
@click.option(
    "--epochs",
    type=click.IntRange(1),
    help="Maximum number of fine-tuning epochs; chosen by the number of training images if not given.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1, 4096),
    default=Recipe.batch_size,
    show_default=True,
    help="Images per training step.",
)
@click.option("--learning-rate", type=click.FloatRange(0, 1, min_open=True), help="Peak learning rate of fine-tuning.")
@click.option(
    "--augment",
    type=click.FloatRange(0, 2),
    default=Recipe.augment,
    show_default=True,
    help="Strength of the augmentation: random views, light and mixing; 0 turns it off.",
)
@click.option(
    "--flip/--no-flip",
    default=Recipe.flip,
    show_default=True,
    help="Mirror images at random; turn it off if left and right are different classes.",
)
@click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    default=Recipe.precision,
    show_default=True,
    help="Numeric precision: mixed computes in 16 bits; auto is mixed on a GPU and float32 elsewhere.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=Recipe.seed,
    show_default=True,
    help="Random seed; the same seed on the same machine trains the same model.",
)
@click.option(
    "--group-by",
    metavar="REGEX",
    help="Keep images in one split if REGEX matches the same text in their paths.",
)
@click.option(
    "--split-from", type=click.Path(path_type=Path), metavar="RUN", help="Keep the splits of an earlier run's images."
)
@click.option(
    "--max-unreadable",
    type=click.FloatRange(0, 100),
    default=100 * Reading.max_unreadable,
    show_default=True,
    metavar="PERCENT",
    help="Maximum share of unreadable images. They are left out and reported; with more, training stops.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder in which preprocessed images are kept between trainings.",
)
@click.option("--tensorboard", type=click.Path(path_type=Path), metavar="DIR", help="Write TensorBoard logs to DIR.")
@click.option(
    "--distribute",
    metavar="devices|HOST:PORT,RANK/COUNT",
    help="Train on all GPUs of this machine, or as process RANK of COUNT; process 0 listens at HOST:PORT.",
)
@click.option("--resume", is_flag=True, help="Continue the interrupted training of the same run.")
def train_command(
    data: Path,
    run: Path,
    *,
    group_by: str | None,
    split_from: Path | None,
    max_unreadable: float,
    cache: Path | None,
    tensorboard: Path | None,
    distribute: str | None,
    resume: bool,
    **choices: Any,
) -> None:
    """Train a classifier on the images in DATA.

    DATA is a folder per class, train/val/test folders of those, or a CSV file of path,label[,group][,split].
    """
    recipe = Recipe(**choices)
    reading = Reading(max_unreadable / 100, group_by, split_from, cache)
    team = form_team(distribute)
    try:
        if not team.leads:
            assist(data, recipe, team=team, reading=reading)
            return
        trained = train(
            data,
            run,
            recipe,
            console=Console(stderr=True),
            reading=reading,
            team=team,
            resume=resume,
            tensorboard=tensorboard,
        )
    except KeyboardInterrupt:
        remedy = "; continue with the same command and --resume" if unfinished_path(run).exists() else ""
        click.echo(f"edgeloop: interrupted{remedy}", err=True)
        leave(130)
    except TeamLostError as error:
        click.echo(f"edgeloop: {error}", err=True)
        leave(error.exit_code)
    low, high = trained.test_interval_95
    click.echo(
        f"accuracy: {100 * trained.test_accuracy:.1f} % of {trained.test_images} test images; "
        f"95 % interval {100 * low:.1f} to {100 * high:.1f} %"
    )
    click.echo(f"report:  {run / 'report.html'}")
    click.echo(f"next:    edgeloop convert {run} --out NAME-VERSION.edgeloop")
