"""`edgeloop shortlist`: the most worthwhile of very many captures, to be labelled."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import click
from rich.console import Console

from edge_agent.errors import ConfigError

PROBLEMS_SHOWN = 5


@click.command("shortlist", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("captures", type=click.Path(path_type=Path))
@click.option("--run", type=click.Path(path_type=Path), help="The run whose model is to get better.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to review, made or added to.")
@click.option("--count", default=1000, show_default=True, type=click.IntRange(1), help="Frames to put on the list.")
@click.option(
    "--alike", default=0, show_default=True, type=click.IntRange(0), help="Frames like each to put beside it, at most."
)
@click.option("--workers", type=click.IntRange(1), help="Processes, on Ray; without it, and --cluster, this one.")
@click.option("--cluster", metavar="ADDRESS", help="Work on the machines of a Ray cluster.")
@click.option("--cache", type=click.Path(path_type=Path), help="Where what the network saw in training is kept.")
def shortlist_command(
    captures: Path,
    run: Path | None,
    out: Path,
    count: int,
    alike: int,
    workers: int | None,
    cluster: str | None,
    cache: Path | None,
) -> None:
    """Choose, from very many CAPTURES, the frames most worth labelling, and put them into a folder for
    `edgeloop review`.

    Every frame is looked at once; interrupted, the same command goes on. Frames alike count as one. The list is the
    same on one process, on many, and on a cluster whose machines find CAPTURES, --run and --out at the same paths.
    """
    from ..shortlist.executor import here, on_ray
    from ..shortlist.pipeline import LIST, make_shortlist

    console = Console()
    if cluster is not None and not cluster.strip():
        raise ConfigError("--cluster: no address; give the one that `ray start --head` printed, or `auto`")
    alone = workers is None and cluster is None
    with nullcontext(here(console)) if alone else on_ray(console, workers=workers, cluster=cluster) as spread:
        made = make_shortlist(
            captures, out, run=run, count=count, likes=alike, spread=spread, console=console, cache=cache
        )
    for problem in made.problems[:PROBLEMS_SHOWN]:
        console.print(problem, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if len(made.problems) > PROBLEMS_SHOWN:
        console.print(f"and {len(made.problems) - PROBLEMS_SHOWN} more", style="yellow")
    left = ((made.copies, "copies"), (made.failed, "unusable"), (made.labelled, "labelled"))
    told = ", ".join(f"{number:,} {what}" for number, what in left if number)
    for line in (
        f"{made.images:,} images" + (f", of which {told}" if told else ""),
        f"{made.picks:,} on the list, {made.stand_for:,} more are like one of them: {out / LIST}",
        f"label them: edgeloop review {out}" + (f" --run {run}" if run else ""),
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
