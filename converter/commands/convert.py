"""`edgeloop convert`."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click
from rich.console import Console
from rich.table import Table

from ..convert import Converted, Method, convert
from ..gate import ALLOWABLE, DEFAULT_MAX_CLASS_DROP, DEFAULT_MAX_DROP, GateLimits


@click.command("convert")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Bundle to write: NAME-VERSION.edgeloop.")
@click.option(
    "--method",
    type=click.Choice(get_args(Method)),
    default="auto",
    show_default=True,
    help="auto tries ever more to keep int8 as good as float, until the gate lets it through.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of images to measure the integer ranges on, best frames of the very camera; by default the run's "
    "training images.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 100),
    default=DEFAULT_MAX_DROP,
    show_default=True,
    help="Points of accuracy that may be lost; refused above.",
)
@click.option(
    "--max-class-drop",
    type=click.FloatRange(0, 100),
    default=DEFAULT_MAX_CLASS_DROP,
    show_default=True,
    help="Points of one class's recall that may be lost, a single image aside.",
)
@click.option(
    "--min-agreement",
    type=click.FloatRange(0, 100),
    default=0.0,
    show_default=True,
    help="Percent of the test images on which float and int8 must name the same class.",
)
@click.option(
    "--allow",
    type=click.Choice(ALLOWABLE),
    multiple=True,
    help="Pack although this check refuses; the bundle says so. Can be given several times.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder the run's images lie in, if they moved since training.",
)
@click.option(
    "--sign",
    "key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="SSH key to sign the bundle with, such as ~/.ssh/id_ed25519.",
)
def convert_command(
    run: Path,
    out: Path,
    method: Method,
    calibration: Path | None,
    max_drop: float,
    max_class_drop: float,
    min_agreement: float,
    allow: tuple[str, ...],
    data: Path | None,
    key: Path | None,
) -> None:
    """Quantize RUN to int8, prove it on the test split, pack it as a bundle.

    Writes nothing and exits 1 when too much is lost, when the scores are constant or no numbers, and when int8 is
    slower than float.
    """
    limits = GateLimits(max_drop, max_class_drop, min_agreement, frozenset(allow))
    converted = convert(
        run,
        out,
        console=Console(stderr=True),
        method=method,
        limits=limits,
        data=data,
        calibration=calibration,
        key=key,
    )
    Console().print(_table(converted))
    for one in converted.judged:
        click.echo(f"{one.rung.name}: {one.rung.did}")
    click.echo(f"bundle:  {converted.path}")
    click.echo(f"next:    edgeloop predict {converted.path} IMAGE...")


def _table(converted: Converted) -> Table:
    """Every rung climbed, beside float."""
    verdict = converted.verdict
    table = Table(
        "",
        "accuracy",
        "same answer",
        "score off by",
        "size",
        "time here",
        "",
        title=f"{len(verdict.model.truth)} test images",
    )
    table.add_row(
        "float",
        f"{100 * verdict.float32.accuracy:.1f} %",
        "",
        f"{100 * verdict.float32.calibration_error():.1f} %",
        f"{converted.float_bytes / 1e6:.2f} MB",
        f"{verdict.float_ms:.1f} ms",
        "",
    )
    for one in converted.judged:
        table.add_row(
            one.rung.name,
            f"{100 * one.verdict.model.accuracy:.1f} %",
            f"{100 * one.verdict.agreement:.1f} %",
            f"{100 * one.verdict.model.calibration_error():.1f} %",
            f"{len(one.rung.model) / 1e6:.2f} MB",
            f"{one.verdict.model_ms:.1f} ms",
            "packed" if one.passed else "refused",
        )
    return table
