"""`edgeloop predict`: classify image files with the same code that the agent runs."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

import edge_agent

from ..errors import ImageError, one_line


@click.command("predict")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--top", type=click.IntRange(1), default=1, show_default=True, help="Labels to show per image.")
@click.option("--threads", type=click.IntRange(1, 64), help="Inference threads; by default one per core, up to four.")
@click.option("--delegate", help="Shared library of an external delegate, such as Coral's libedgetpu.so.1.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def predict_command(
    bundle: Path, images: tuple[Path, ...], top: int, threads: int | None, delegate: str | None, *, as_json: bool
) -> None:
    """Classify IMAGES with the model in BUNDLE.

    Images that cannot be read are reported on standard error, and the exit code is 1.
    """
    from ..images import read_image

    failed = 0
    with edge_agent.open(bundle, threads=threads, delegate=delegate) as model:
        for path in images:
            try:
                result = model.classify(read_image(path))
            except ImageError as error:
                click.echo(f"edgeloop: {one_line(error)}", err=True)
                failed += 1
                continue
            best = result.top(top)
            if as_json:
                line = {
                    "picture": str(path),
                    "top": [{"label": label, "score": round(score, 6)} for label, score in best],
                    "timing_ms": {
                        "preprocess": round(result.preprocess_ms, 3),
                        "inference": round(result.inference_ms, 3),
                    },
                }
                click.echo(msgspec.json.encode(line).decode())
            else:
                click.echo(f"{path}: {', '.join(f'{label} {score:.3f}' for label, score in best)}")
    if failed:
        raise click.exceptions.Exit(1)
