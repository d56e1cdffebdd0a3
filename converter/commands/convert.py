"""`edgeloop convert`."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click
from rich.console import Console
from rich.table import Table

from ..gate import ALLOWABLE, DEFAULT_MAX_CLASS_DROP, DEFAULT_MAX_DROP, GateLimits
from ..pipeline import Converted, Method, convert


@click.command("convert")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Bundle to write: NAME-VERSION.edgeloop.")
@click.option(
    "--method",
    type=click.Choice(get_args(Method)),
    default="auto",
    show_default=True,
    help="auto starts with plain int8 and applies further quantization steps until the model passes the gate.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of images to measure the integer ranges on, ideally frames from the deployed camera; by default the "
    "run's training images.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 100),
    default=DEFAULT_MAX_DROP,
    show_default=True,
    help="Maximum loss of accuracy, in percentage points.",
)
@click.option(
    "--max-class-drop",
    type=click.FloatRange(0, 100),
    default=DEFAULT_MAX_CLASS_DROP,
    show_default=True,
    help="Maximum loss of recall of any class, in percentage points; a loss of one image is always accepted.",
)
@click.option(
    "--min-agreement",
    type=click.FloatRange(0, 100),
    default=0.0,
    show_default=True,
    help="Minimum percentage of test images on which float and int8 predict the same class.",
)
@click.option(
    "--allow",
    type=click.Choice(ALLOWABLE),
    multiple=True,
    help="Pack the model even if this check fails; the bundle records it. Can be given several times.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the run's images, if they were moved after training.",
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
    """Quantize RUN to int8, evaluate it on the test split and pack it as a bundle.

    Writes nothing and exits with status 1 if the model loses too much accuracy, gives constant or non-finite scores,
    or is slower than float.
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
    for one in converted.outcomes:
        click.echo(f"{one.rung.name}: {one.rung.did}")
    click.echo(f"bundle:  {converted.path}")
    click.echo(f"next:    edgeloop predict {converted.path} IMAGE...")


def _table(converted: Converted) -> Table:
    """Return a table that compares every rung that was tried with the float model."""
    verdict = converted.verdict
    table = Table(
        "",
        "accuracy",
        "agreement",
        "calibration error",
        "size",
        "latency here",
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
    for one in converted.outcomes:
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
