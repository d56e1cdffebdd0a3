"""`edgeloop export`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--format", "kind", type=click.Choice(["saved_model"]), default="saved_model", show_default=True)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="The server's model directory."
)
@click.option("--name", help="The model's name on the server; the run directory's by default.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder the run's images lie in, if they moved since training.",
)
def export_command(run: Path, kind: str, out: Path, name: str | None, data: Path | None) -> None:  # noqa: ARG001
    """Write RUN for TensorFlow Serving: JPEG bytes to labels and scores, preprocessing included.

    Makes OUT/NAME/1/, or the next free number. Writes nothing and exits 1 when the result, in a fresh process,
    answers otherwise than the run.
    """
    from ..tf_serving import export_saved_model

    exported = export_saved_model(run, out, console=Console(stderr=True), name=name, data=data)
    click.echo(f"answers as the run does on {exported.images} test images, to {exported.furthest:.1g} of a score")
    click.echo(f"model:   {exported.path}")
    click.echo(
        f"next:    tensorflow_model_server --rest_api_port=8501 --model_name={exported.path.parent.name} "
        f"--model_base_path={exported.path.parent.resolve()}"
    )
