"""`edgeloop retrain`: trains a new model with labelled frames and compares it with the current one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from converter.gate import GateLimits
from edge_agent.errors import ConfigError

from ..pipelines.retrain.comparison import MAX_CLASS_DROP, MAX_DROP
from ..pipelines.retrain.pipeline import PAGE, Retrained, Terms, retrain


def takes_terms(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command with the options that are common to all commands that retrain."""
    options = (
        click.option(
            "--none-class", metavar="NAME", help="Use frames that show none of the classes as a class of this name."
        ),
        click.option(
            "--max-drop",
            type=click.FloatRange(0, 100),
            default=MAX_DROP,
            show_default=True,
            help="Maximum loss of accuracy on the frozen test split, in percentage points.",
        ),
        click.option(
            "--max-class-drop",
            type=click.FloatRange(0, 100),
            default=MAX_CLASS_DROP,
            show_default=True,
            help="Maximum loss of recall of any class on the frozen test split, in percentage points.",
        ),
        click.option(
            "--sign", "key", type=click.Path(path_type=Path), metavar="KEY", help="SSH key to sign the bundle with."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command("retrain", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("captures", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Run directory to create; must not exist.")
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="Bundle to write if the new model is promoted: NAME-VERSION.edgeloop.  [default: OUT.edgeloop]",
)
@click.option(
    "--champion", type=click.Path(path_type=Path), help="Current bundle on the devices; by default converted from RUN."
)
@click.option("--epochs", type=click.IntRange(1), help="Maximum number of fine-tuning epochs; by default that of RUN.")
@click.option(
    "--fine-tune",
    type=click.Choice(["auto", "none", "top", "all"]),
    help="Part of the backbone to fine-tune; by default the same as in RUN.",
)
@takes_terms
@click.option("--cache", type=click.Path(path_type=Path), help="Folder for the cache of preprocessed images.")
@click.option("--resume", is_flag=True, help="Resume an interrupted training of OUT.")
def retrain_command(
    run: Path,
    captures: Path,
    out: Path,
    bundle: Path | None,
    champion: Path | None,
    none_class: str | None,
    epochs: int | None,
    fine_tune: str | None,
    max_drop: float,
    max_class_drop: float,
    key: Path | None,
    cache: Path | None,
    *,
    resume: bool,
) -> None:
    """Continue training RUN with the frames labelled in CAPTURES, and promote the new model if it is not worse.

    The frozen test split of RUN is not used for training, and part of the labelled frames is kept for testing. Both
    models are evaluated in int8 with the device's classifier; OUT/promotion.html shows the comparison with the images.
    Exits with status 1 if the new model is not promoted.
    """
    console = Console()
    if bundle is None:
        bundle = out.with_name(f"{out.name}.edgeloop")
    try:
        done = retrain(
            run,
            captures,
            out,
            bundle=bundle,
            champion=champion,
            none_class=none_class,
            epochs=epochs,
            fine_tune=fine_tune,
            terms=Terms(max_drop, max_class_drop, GateLimits()),
            key=key,
            cache=cache,
            resume=resume,
            console=console,
        )
    except ConfigError as error:
        if bundle.name in str(error):
            raise ConfigError(f"{error}; or give one with --bundle") from error
        raise
    show(done, console)
    if done.refusals:
        sys.exit(1)


def show(done: Retrained, console: Console) -> None:
    """Print the accuracy of both models and the verdict."""
    table = Table("", "images", "champion", "challenger")
    comparison = done.comparison
    sets = [] if comparison is None else [("frozen test split", comparison.frozen), ("new frames", comparison.new)]
    for name, results in sets:
        if results is not None:
            before, now = results.champion.accuracy, results.challenger.accuracy
            table.add_row(name, str(len(results.photos)), f"{100 * before:.1f} %", f"{100 * now:.1f} %")
    if table.rows:
        console.print(table)
    for refusal in done.refusals:
        console.print(refusal, style="red", markup=False, highlight=False, soft_wrap=True)
    verdict = "not promoted" if done.bundle is None else f"promoted: {done.bundle}"
    console.print(f"{verdict}; comparison: {done.run / PAGE}", markup=False, highlight=False, soft_wrap=True)
