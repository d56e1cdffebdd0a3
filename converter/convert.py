"""A run to a bundle, read top to bottom: float, int8, the gate, the bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn, track

from edge_agent.classifier import Classifier
from edge_agent.errors import ConfigError, ModelError
from edge_agent.evaluation import Evaluation, evaluate
from edge_agent.preprocess import Pixels

from .calibration import representative
from .gate import DEFAULT_MAX_DROP, Verdict
from .pack import pack, parse_name
from .quantize import export, load_model, to_float, to_int8
from .run import SAVED_MODEL, Run, open_run


@dataclass(frozen=True)
class Converted:
    """The bundle written, and what the gate measured."""

    path: Path
    digest: str
    verdict: Verdict
    float_bytes: int
    int8_bytes: int


def convert(
    run_path: Path, out: Path, *, console: Console, max_drop: float = DEFAULT_MAX_DROP, data: Path | None = None
) -> Converted:
    """Quantize a run to int8, measure both models on its test split, pack the bundle if int8 lost little enough.

    Args:
        run_path: a run directory.
        out: the bundle to write, called NAME-VERSION.edgeloop. Replaced when it exists.
        console: where progress goes.
        max_drop: points of accuracy int8 may lose.
        data: where the run's pictures lie now, if they moved.

    Raises:
        DataError: the run or its pictures are not what they were.
        GateError: int8 lost too much. In either case nothing is written.
    """
    parse_name(out)
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent}: no such directory; make it first")
    run = open_run(run_path, data=data)
    pictures = representative(
        run, progress=lambda photos: track(photos, "Reading calibration pictures", console=console)
    )

    columns = (*Progress.get_default_columns()[:-1], TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory(prefix="edgeloop-convert-") as scratch,
        Progress(*columns, console=console) as progress,
    ):
        folder = Path(scratch) / "saved_model"
        steps = len(pictures.pixels) + 3
        bar = progress.add_task("Exporting", total=steps)
        if (run.path / SAVED_MODEL).is_dir():
            folder = run.path / SAVED_MODEL
        else:
            export(load_model(run.path / "model.keras", run.spec, len(run.labels)), folder, run.spec)
        progress.advance(bar)
        progress.update(bar, advance=1, description="Converting to float32")
        float_model = to_float(folder)
        progress.update(bar, advance=1, description="Quantizing to int8")
        int8_model = to_int8(folder, pictures.pixels, advance=lambda: progress.advance(bar))
        progress.update(bar, completed=steps)

    verdict = Verdict(_score(run, float_model, "float32", console), _score(run, int8_model, "int8", console))
    verdict.check(max_drop)
    digest = pack(out, run, int8_model, verdict.metrics(), pictures.record)
    return Converted(out, digest, verdict, len(float_model), len(int8_model))


def _score(run: Run, model: bytes, name: str, console: Console) -> Evaluation:
    """Score one model on the test split, picture by picture, as the device will."""
    photos = run.split("test")

    def pictures() -> Iterator[tuple[Pixels, str]]:
        for frame, photo in track(run.read(photos), f"Testing {name}", total=len(photos), console=console):
            yield frame, photo.label

    with Classifier(model, labels=run.labels, spec=run.spec) as classifier:
        if name == "int8" and classifier.tensors.input.dtype == "float32":
            raise ModelError("the quantizer left the input in float32; this network cannot be packed as int8")
        return evaluate(classifier, pictures())
