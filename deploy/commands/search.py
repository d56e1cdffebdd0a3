"""`edgeloop search`: finds the network and input size for a latency budget."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from edge_agent.atomic_files import replacing
from edge_agent.bench.report import Report
from edge_agent.errors import ConfigError, DeviceError, MissingExtraError

from ..pipelines.search import (
    CANDIDATES,
    Measure,
    SearchCandidate,
    Searched,
    SearchResult,
    merged,
    recommend,
    search,
    train_command,
)


@click.command("search")
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--budget-ms",
    required=True,
    type=click.FloatRange(0, 60_000, min_open=True),
    help="Latency budget for one inference, in milliseconds.",
)
@click.option("--host", help="Measure on this provisioned device, [USER@]HOST[:PORT], instead of this machine.")
@click.option(
    "--ssh-config",
    "-F",
    type=click.Path(path_type=Path, exists=True),
    help="SSH configuration file to use instead of ~/.ssh/config.",
)
@click.option(
    "--backbone",
    "backbones",
    multiple=True,
    help="Network to try instead of the default candidates. Can be given several times.",
)
@click.option(
    "--size",
    "sizes",
    multiple=True,
    type=click.IntRange(32, 1024),
    help="Input size to try, in pixels. Can be given several times.",
)
@click.option("--threads", type=click.IntRange(1, 64), help="Number of inference threads; by default the agent's.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("search"),
    show_default=True,
    help="Directory of the search; a search that was interrupted there is resumed.",
)
@click.option(
    "--sign",
    "key",
    type=click.Path(path_type=Path),
    metavar="KEY",
    help="SSH key to sign the bundles with, for a --host that requires signatures.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Random seed for training and the split."
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def search_command(
    data: Path,
    budget_ms: float,
    host: str | None,
    ssh_config: Path | None,
    backbones: tuple[str, ...],
    sizes: tuple[int, ...],
    threads: int | None,
    out: Path,
    key: Path | None,
    seed: int,
    *,
    as_json: bool,
) -> None:
    """Find the network and input size for DATA that fit a latency budget, measured on the target.

    For each candidate the command trains a head on frozen features, quantizes the model and measures it on the target.
    It recommends the fastest candidate within the budget whose accuracy is not significantly below the best; train
    that one fully with `edgeloop train`. An interrupted search is resumed by the same command.
    """
    from ..bench_report.page import render

    err = Console(stderr=True, highlight=False)
    candidates = _candidates(backbones, sizes)
    measure = _here(threads) if host is None else _there(host, ssh_config, threads)
    target = host or "this machine"
    searched = search(data, out, candidates, measure=measure, target=target, seed=seed, key=key, console=err)
    chosen = recommend(searched.found, budget_ms)
    if searched.report is not None:
        with replacing(out / "search.html") as file:
            file.write(render([searched.report]).encode())
    if as_json:
        found = [_as_json(one) for one in searched.found]
        command = None if chosen is None else train_command(data, chosen)
        click.echo(json.dumps({"found": found, "recommended": chosen and _as_json(chosen), "train": command}, indent=2))
    else:
        _show(searched, chosen, data, budget_ms, out)
    if chosen is None:
        sys.exit(1)


def _candidates(backbones: Sequence[str], sizes: Sequence[int]) -> list[SearchCandidate]:
    from trainer.backbones import find_backbone

    if not backbones and not sizes:
        return [SearchCandidate(*one) for one in CANDIDATES]
    chosen = []
    for name in dict.fromkeys(backbones or (CANDIDATES[0][0],)):
        default = find_backbone(name).default_size
        chosen += [SearchCandidate(name, size) for size in dict.fromkeys(sizes or (default,))]
    return chosen


def _here(threads: int | None) -> Measure:
    def measure(bundles: Sequence[Path]) -> Report:
        from rich.progress import BarColumn, Progress, TextColumn

        from edge_agent.bench.runner import Plan
        from edge_agent.bench.runner import measure as run

        plan = Plan(bundles, () if threads is None else (threads,), stages=False)
        err = Console(stderr=True, highlight=False)
        with Progress(TextColumn("{task.description}"), BarColumn(), console=err, disable=not err.is_terminal) as bars:
            bar = bars.add_task("Measuring", total=1.0)
            return run(
                plan, lambda what, share: bars.update(bar, description=what, completed=share), lambda _report: None
            )

    return measure


def _there(name: str, ssh_config: Path | None, threads: int | None) -> Measure:
    try:
        from ..fleet.inventory import choose
        from ..fleet.push import Choices, package, push
        from ..fleet.remote_bench import bench
    except ImportError as error:
        raise MissingExtraError("edgeloop search --host", "deploy", error.name) from error

    (host,) = choose([name], None)

    async def one(bundle: Path, folder: Path) -> Report:
        what = package(bundle)
        outcome = await push(host, what, Choices(activate=False, ssh_config=ssh_config), lambda _host, _event: None)
        if not outcome.healthy:
            raise DeviceError(f"{host.name}: {outcome.text}")
        options = [] if threads is None else ["--threads", str(threads)]
        done = await bench(
            host, options, folder, seconds=3, ssh_config=ssh_config, on_progress=lambda *_: None, digest=what.digest
        )
        return done.report

    def measure(bundles: Sequence[Path]) -> Report:
        with tempfile.TemporaryDirectory() as folder:
            return merged([asyncio.run(one(bundle, Path(folder))) for bundle in bundles])

    return measure


def _show(searched: Searched, chosen: SearchResult | None, data: Path, budget_ms: float, out: Path) -> None:
    console = Console(highlight=False, soft_wrap=True)
    table = Table("network", "size", "accuracy", "p50", "p95", "MB", "")
    for one in searched.found:
        fits = one.p50_ms <= budget_ms
        mark = "recommended" if one == chosen else "" if fits else "too slow"
        table.add_row(
            one.candidate.backbone,
            str(one.candidate.size),
            f"{100 * one.accuracy:.1f} %",
            f"{one.p50_ms:.2f} ms",
            f"{one.p95_ms:.2f} ms",
            f"{one.model_mb:.2f}",
            mark,
            style="bold" if one == chosen else "" if fits else "dim",
        )
    console.print(table)
    for candidate, reason in searched.failed:
        console.print(f"{candidate.backbone} at {candidate.size}: {reason}", markup=False)
    if searched.found:
        images = searched.found[0].images
        console.print(f"accuracy on {images} test images, heads on frozen features; report: {out / 'search.html'}")
    if chosen is not None:
        console.print(train_command(data, chosen), markup=False)
    elif searched.found:
        fastest = min(searched.found, key=lambda one: one.p50_ms)
        message = (
            f"no candidate is within {budget_ms:g} ms; the fastest, {fastest.candidate.name}, takes "
            f"{fastest.p50_ms:.2f} ms"
        )
        smaller = max(32, fastest.candidate.size // 2)
        click.echo(f"edgeloop: {message}; raise --budget-ms or try --size {smaller}", err=True)
    else:
        raise ConfigError("no candidate could be converted and measured; the reasons are printed above")


def _as_json(result: SearchResult) -> dict[str, Any]:
    """Return the fields of a result by the names that `--json` prints. These names never change."""
    found = asdict(result)
    return {"pictures" if name == "images" else name: value for name, value in found.items()}
