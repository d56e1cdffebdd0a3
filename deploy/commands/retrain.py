"""`edgeloop retrain`."""

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
    """What the next model learns and is held to: the same options for every command that makes one."""
    options = (
        click.option("--none-class", metavar="NAME", help="Make the frames that show none of the classes a class."),
        click.option(
            "--max-drop",
            type=click.FloatRange(0, 100),
            default=MAX_DROP,
            show_default=True,
            help="Points of accuracy that may be lost on the frozen test split.",
        ),
        click.option(
            "--max-class-drop",
            type=click.FloatRange(0, 100),
            default=MAX_CLASS_DROP,
            show_default=True,
            help="Points one class may lose there.",
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
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Run directory to make; must not exist.")
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="Bundle to write where the new model is no worse: NAME-VERSION.edgeloop.  [default: OUT.edgeloop]",
)
@click.option(
    "--champion", type=click.Path(path_type=Path), help="The bundle that runs now; made of RUN when left out."
)
@click.option("--epochs", type=click.IntRange(1), help="Fine-tuning passes at most; by the number of images.")
@click.option("--fine-tune", type=click.Choice(["auto", "none", "top", "all"]), help="Other than RUN's.")
@takes_terms
@click.option("--cache", type=click.Path(path_type=Path), help="Where prepared images are kept.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted training of OUT.")
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
    """Train on from RUN with the frames labelled in CAPTURES, and promote the result only where it is no worse.

    The frozen test split of RUN stays apart, and part of the labelled frames is kept to test with. Old model and
    new one answer for both as int8, on the device's own classifier; OUT/promotion.html shows them side by side, with
    the images. Exits 1 where the model before stays.
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
            raise ConfigError(f"{error}; or name one with --bundle") from error
        raise
    show(done, console)
    if done.refusals:
        sys.exit(1)


def show(done: Retrained, console: Console) -> None:
    """Both models' figures and the verdict."""
    table = Table("", "images", "before", "now")
    matches = [] if done.duel is None else [("frozen test split", done.duel.frozen), ("new frames", done.duel.new)]
    for name, match in matches:
        if match is not None:
            before, now = match.champion.accuracy, match.challenger.accuracy
            table.add_row(name, str(len(match.photos)), f"{100 * before:.1f} %", f"{100 * now:.1f} %")
    if table.rows:
        console.print(table)
    for refusal in done.refusals:
        console.print(refusal, style="red", markup=False, highlight=False, soft_wrap=True)
    verdict = "the model before stays" if done.bundle is None else f"promoted: {done.bundle}"
    console.print(f"{verdict}; both side by side in {done.run / PAGE}", markup=False, highlight=False, soft_wrap=True)
