"""`edgeloop bench report`: renders reports of `edgeloop bench` as one HTML page."""

from __future__ import annotations

from pathlib import Path

import click

# Imported first, so that the error message names a missing package.
import jinja2  # noqa: F401
import matplotlib as mpl  # noqa: F401

from edge_agent.atomic_files import replacing
from edge_agent.bench.report import load

from ..bench_report.page import render


@click.command("report")
@click.argument("reports", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="HTML file to write.")
def report_command(reports: tuple[Path, ...], out: Path) -> None:
    """Render REPORTS, written by `edgeloop bench --json`, as one self-contained HTML page."""
    html = render([load(path) for path in reports])
    with replacing(out) as file:
        file.write(html.encode("utf-8", "replace"))
    click.echo(out)
