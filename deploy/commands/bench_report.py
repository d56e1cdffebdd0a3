"""`edgeloop bench report`."""

from __future__ import annotations

from pathlib import Path

import click

# Looked for first, so that without the packages of the page the one line says which.
import jinja2  # noqa: F401
import matplotlib as mpl  # noqa: F401

from edge_agent.atomic_files import replacing
from edge_agent.bench.report import load

from ..bench_report.page import render


@click.command("report")
@click.argument("reports", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="HTML file to write.")
def report_command(reports: tuple[Path, ...], out: Path) -> None:
    """Show REPORTS, as `edgeloop bench --json` writes them, in one HTML page that needs no other file."""
    html = render([load(path) for path in reports])
    with replacing(out) as file:
        file.write(html.encode("utf-8", "replace"))
    click.echo(out)
