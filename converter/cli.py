"""`edgeloop convert`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from .convert import convert
from .gate import DEFAULT_MAX_DROP


@click.command("convert")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Bundle to write: NAME-VERSION.edgeloop.")
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 100),
    default=DEFAULT_MAX_DROP,
    show_default=True,
    help="Points of accuracy int8 may lose; refused above.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder the run's pictures lie in, if they moved since training.",
)
def convert_command(run: Path, out: Path, max_drop: float, data: Path | None) -> None:
    """Quantize RUN to int8, prove it on the test split, pack it as a bundle.

    Writes nothing and exits 1 when int8 loses more than --max-drop points.
    """
    converted = convert(run, out, console=Console(stderr=True), max_drop=max_drop, data=data)
    verdict = converted.verdict
    agreement = verdict.int8.agreement(verdict.float32)
    click.echo(
        f"{100 * verdict.float32.accuracy:.1f} % float, {100 * verdict.int8.accuracy:.1f} % int8 "
        f"of {len(verdict.int8.truth)} test pictures; the same answer on {100 * agreement:.1f} %"
    )
    click.echo(f"{converted.float_bytes / 1e6:.2f} MB float, {converted.int8_bytes / 1e6:.2f} MB int8")
    click.echo(f"bundle:  {converted.path}")
    click.echo(f"next:    edgeloop predict {converted.path} PICTURE...")
