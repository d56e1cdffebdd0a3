"""`edgeloop evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edge_agent.errors import DataError, one_line

from ..data import SPLITS, Dataset
from ..evaluation import Evaluated, ImagesOnDemand, evaluate
from ..progress import status

if TYPE_CHECKING:
    from ..data import PixelRows

SHOWN = 10
"""Maximum number of confused pairs, mistakes and unreadable images to print; --json prints all."""


@click.command("evaluate")
@click.argument("model", type=click.Path(path_type=Path), metavar="RUN_OR_BUNDLE")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(SPLITS), help="Evaluate only this split of DATA.")
@click.option("--all", "everything", is_flag=True, help="Include images that the model was trained on.")
@click.option(
    "--run",
    type=click.Path(path_type=Path),
    help="Run that the bundle was made from, to leave out its training images; not needed if the model is a run.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with the metrics and every mistake.")
@click.option(
    "--report", type=click.Path(path_type=Path), metavar="FILE.html", help="Write a report with images to FILE.html."
)
def evaluate_command(
    model: Path,
    data: Path,
    split: str | None,
    run: Path | None,
    report: Path | None,
    *,
    everything: bool,
    as_json: bool,
) -> None:
    """Evaluate the model of RUN_OR_BUNDLE on the labelled images in DATA.

    DATA is a folder per class, train/val/test folders of those, or a CSV file of path,label[,group][,split].
    Images the model was trained on are left out.
    """
    if report is not None and not report.parent.is_dir():
        raise DataError(f"{report.parent}: no such folder for the report; create it first")
    errors = Console(stderr=True, highlight=False)
    found = evaluate(model, data, console=errors, split=split, everything=everything, run=run)
    for reason in found.unreadable[:SHOWN]:
        errors.print(f"left out: {_printable(reason)}", markup=False, soft_wrap=True)
    if len(found.unreadable) > SHOWN:
        errors.print(f"left out: {len(found.unreadable) - SHOWN} more unreadable images")
    for doubt in found.doubts:
        errors.print(f"note: {doubt}", markup=False, soft_wrap=True)
    if report is not None:
        with status(errors, "Writing the report"):
            _write_report(report, found)
    if as_json:
        click.echo(json.dumps(_as_json(found), indent=2))
    else:
        _show(found, Console(highlight=False))
        if report is not None:
            click.echo(f"report: {report}")


def _as_json(found: Evaluated) -> dict[str, Any]:
    from ..report import scored

    return {
        "model": str(found.model),
        **scored(found.evaluation),
        "mistakes": found.mistakes(),
        "trained_on": found.trained_on,
        "unreadable": list(found.unreadable),
        "notes": list(found.doubts),
    }


def _show(found: Evaluated, console: Console) -> None:
    test = found.evaluation
    low, high = test.interval_95
    left_out = [
        f"{count} {why}"
        for count, why in ((found.trained_on, "training images"), (len(found.unreadable), "unreadable"))
        if count
    ]
    console.print(
        f"accuracy: [bold]{100 * test.accuracy:.1f} %[/bold] of {len(test.truth)} images; 95 % interval "
        f"{100 * low:.1f} to {100 * high:.1f} %",
        soft_wrap=True,
    )
    console.print(
        f"mean F1 {test.macro_f1:.3f}, calibration error {100 * test.calibration_error():.1f} %, "
        f"log loss {test.log_loss:.3f}" + (f"; left out: {', '.join(left_out)}" if left_out else ""),
        soft_wrap=True,
    )
    console.print(_class_table(found))
    pairs = test.confused_pairs()
    if not pairs:
        return
    support = test.support()
    console.print("[bold]Most confused[/bold]")
    for label, predicted, count in pairs[:SHOWN]:
        line = f"  {_printable(label)} misclassified as {_printable(predicted)}: {count} of {support[label]}"
        console.print(line, markup=False, soft_wrap=True)
    console.print("[bold]Worst mistakes[/bold]")
    for mistake in found.mistakes()[:SHOWN]:
        line = (
            f"  {_printable(mistake['path'])}: {_printable(mistake['label'])} misclassified as "
            f"{_printable(mistake['taken_for'])} (score {mistake['score']:.2f})"
        )
        console.print(line, markup=False, soft_wrap=True)


def _class_table(found: Evaluated) -> Table:
    test = found.evaluation
    recall, precision, f1, support = test.recall(), test.precision(), test.f1(), test.support()
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("class", overflow="ellipsis", no_wrap=True, max_width=40)
    for heading in ("images", "recall", "precision", "F1"):
        table.add_column(heading, justify="right", no_wrap=True)
    for label in sorted(recall, key=lambda label: recall[label]):
        table.add_row(
            Text(_printable(label)),
            str(support[label]),
            f"{100 * recall[label]:.1f} %",
            f"{100 * precision[label]:.1f} %" if label in precision else "-",
            f"{f1[label]:.3f}",
        )
    return table


def _write_report(path: Path, found: Evaluated) -> None:
    from dataclasses import replace

    from ..report import ReportData, write_report

    pixels = ImagesOnDemand(found.root, found.photos, found.spec)
    photos = tuple(replace(photo, split="test") for photo in found.photos)
    dataset = Dataset(found.evaluation.labels, photos, cast("PixelRows", pixels), None, ())
    kind = "float model" if found.network is not None else "bundle on the device's runtime"
    story = ReportData(
        dataset=dataset,
        tested=range(len(photos)),
        test=found.evaluation,
        model=found.network,
        channels=found.spec.channels,
        subject=f"{found.model.name} on {found.root.name}",
        doubts=found.doubts,
        footnote=f"These metrics are those of the {kind}.",
    )
    write_report(path, story)


def _printable(text: str) -> str:
    """Remove control characters: file and class names must not be able to control the terminal."""
    return one_line(ValueError(text))
