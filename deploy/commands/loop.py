"""`edgeloop loop`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from converter.gate import GateLimits
from edge_agent.errors import ConfigError, EdgeloopError

from ..fleet.inventory import Host, choose
from ..fleet.pull import Pulled, pull
from ..fleet.push import Choices, package
from ..fleet.rollout import AT_ONCE, WAVES, Rollout, roll_out
from ..pipelines.loop import STATE, Means, begin, once_round
from ..pipelines.retrain.pipeline import Terms
from . import _console
from ._hosts import each, takes_hosts
from .retrain import takes_terms


@click.command("loop", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("work", type=click.Path(path_type=Path, file_okay=False))
@takes_hosts
@click.option("--run", type=click.Path(path_type=Path), help="The first time: the run of the model on the devices.")
@click.option("--bundle", type=click.Path(path_type=Path), help="The first time: the bundle on the devices.")
@click.option(
    "--enough", type=click.IntRange(1), help="Retrain with so many new labels, though other frames wait for review."
)
@takes_terms
@click.option("--waves", default=WAVES, show_default=True, help="As of `edgeloop deploy push`.")
@click.option(
    "--tolerate", type=click.FloatRange(0, 100), default=10, show_default=True, help="As of `edgeloop deploy push`."
)
@click.option(
    "--timeout-s",
    type=click.FloatRange(1, 86400),
    default=300,
    show_default=True,
    help="Seconds to wait for a device's first 500 frames.",
)
def loop_command(
    work: Path,
    hosts: tuple[str, ...],
    inventory: Path | None,
    ssh_config: Path | None,
    run: Path | None,
    bundle: Path | None,
    enough: int | None,
    none_class: str | None,
    max_drop: float,
    max_class_drop: float,
    key: Path | None,
    waves: str,
    tolerate: float,
    timeout_s: float,
) -> None:
    """Go once round the loop in the folder WORK, as far as it goes without a person, and say what was done.

    Fetches the devices' captures. Where frames wait for review it ends, naming the command; where all are labelled
    it retrains, judges the new model against the current one, and pushes it in waves if it is no worse. Interrupted
    or started again it goes on where it was; only one runs at a time, so a timer may start it.
    """
    chosen = choose(hosts, inventory)
    if (run is None) != (bundle is None):
        raise ConfigError("--run and --bundle belong together: the model on the devices, named the first time")
    if run is not None and bundle is not None:
        begin(work, run, bundle)
    elif not (work / STATE).is_file():
        raise ConfigError(f"{work}: no loop was begun here; name --run and --bundle the first time")

    def pull_all(folder: Path) -> Sequence[tuple[str, Pulled | EdgeloopError]]:
        with _console.counting("captures") as tell:
            return each(chosen, lambda host: pull(host, folder, keep=False, ssh_config=ssh_config, tell=tell))

    def push_all(path: Path) -> Rollout:
        return _push(path, chosen, Choices(watch_s=timeout_s, ssh_config=ssh_config), waves, tolerate)

    means = Means(
        hosts=chosen,
        pull=pull_all,
        push=push_all,
        terms=Terms(max_drop, max_class_drop, GateLimits()),
        enough=enough,
        none_class=none_class,
        key=key,
    )
    done = once_round(work, means, _console.out)
    for sentence in done.did:
        _console.out.print(_console.plain(sentence))
    if not done.well:
        sys.exit(1)


def _push(path: Path, hosts: Sequence[Host], choices: Choices, plan: str, tolerate: float) -> Rollout:
    what = package(path)
    with _console.pushing(what, quiet=False) as (tell, wave):
        return asyncio.run(
            roll_out(hosts, what, choices, plan=plan, tolerate=tolerate / 100, tell=tell, wave=wave, at_once=AT_ONCE)
        )
