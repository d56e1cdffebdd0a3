"""`edgeloop shortlist`: select the frames most worth labelling from a large set of captures."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import click
from rich.console import Console

from edge_agent.errors import ConfigError

PROBLEMS_SHOWN = 5


@click.command("shortlist", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("captures", type=click.Path(path_type=Path))
@click.option("--run", type=click.Path(path_type=Path), help="Run whose model chooses the frames.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder for `edgeloop review`; created or added to."
)
@click.option("--count", default=1000, show_default=True, type=click.IntRange(1), help="Number of frames to select.")
@click.option(
    "--alike",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Maximum number of similar frames to add for each selected frame.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Number of Ray processes; without this and --cluster, everything runs in one process.",
)
@click.option("--cluster", metavar="ADDRESS", help="Address of a Ray cluster to run on.")
@click.option(
    "--cache", type=click.Path(path_type=Path), help="Folder in which embeddings of the training images are kept."
)
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
    """Select the frames most worth labelling from a large number of CAPTURES, and copy them to a folder for
    `edgeloop review`.

    Every frame is processed once; after an interruption the same command continues. Similar frames count as one. The
    selection is the same with one process, several, and a cluster, whose machines must have CAPTURES, --run and --out
    at the same paths.
    """
    from ..shortlist.executor import local_executor, ray_executor
    from ..shortlist.pipeline import LIST, make_shortlist

    console = Console()
    if cluster is not None and not cluster.strip():
        raise ConfigError("--cluster: empty address; give the one that `ray start --head` printed, or `auto`")
    alone = workers is None and cluster is None
    with (
        nullcontext(local_executor(console))
        if alone
        else ray_executor(console, workers=workers, cluster=cluster) as executor
    ):
        made = make_shortlist(
            captures, out, run=run, count=count, similar=alike, executor=executor, console=console, cache=cache
        )
    for problem in made.problems[:PROBLEMS_SHOWN]:
        console.print(problem, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if len(made.problems) > PROBLEMS_SHOWN:
        console.print(f"and {len(made.problems) - PROBLEMS_SHOWN} more", style="yellow")
    left = ((made.copies, "copies"), (made.failed, "unusable"), (made.labelled, "labelled"))
    left_out = ", ".join(f"{number:,} {what}" for number, what in left if number)
    for line in (
        f"{made.images:,} images" + (f", left out: {left_out}" if left_out else ""),
        f"{made.picks:,} selected, {made.represented:,} more are similar to one of them: {out / LIST}",
        f"next: edgeloop review {out}" + (f" --run {run}" if run else ""),
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
