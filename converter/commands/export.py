"""`edgeloop export`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--format", "kind", type=click.Choice(["saved_model"]), default="saved_model", show_default=True)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Model directory of the server."
)
@click.option("--name", help="Name of the model on the server; by default the name of the run directory.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the run's images, if they were moved after training.",
)
def export_command(run: Path, kind: str, out: Path, name: str | None, data: Path | None) -> None:  # noqa: ARG001
    """Export RUN for TensorFlow Serving: JPEG bytes in, labels and scores out, preprocessing included.

    Creates OUT/NAME/1/, or the next free number. Writes nothing and exits with status 1 if the exported model,
    loaded in a fresh process, gives other scores than the run.
    """
    from ..tf_serving import export_saved_model

    exported = export_saved_model(run, out, console=Console(stderr=True), name=name, data=data)
    click.echo(f"checked: {exported.images} test images, scores within {exported.max_difference:.1g} of the run's")
    click.echo(f"model:   {exported.path}")
    click.echo(
        f"next:    tensorflow_model_server --rest_api_port=8501 --model_name={exported.path.parent.name} "
        f"--model_base_path={exported.path.parent.resolve()}"
    )
