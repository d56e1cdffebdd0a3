"""`edgeloop loop`: runs one round of pulling captures, retraining and pushing the new model."""

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
@click.option(
    "--run", type=click.Path(path_type=Path), help="Run of the model on the devices; only for the first call."
)
@click.option("--bundle", type=click.Path(path_type=Path), help="Bundle on the devices; only for the first call.")
@click.option(
    "--enough",
    type=click.IntRange(1),
    help="Retrain as soon as there are this many new labels, even if other frames still wait for review.",
)
@takes_terms
@click.option(
    "--waves", default=WAVES, show_default=True, help="Total number or share of devices done at the end of each wave."
)
@click.option(
    "--tolerate",
    type=click.FloatRange(0, 100),
    default=10,
    show_default=True,
    help="Percentage of a wave that may fail.",
)
@click.option(
    "--timeout-s",
    type=click.FloatRange(1, 86400),
    default=300,
    show_default=True,
    help="Maximum time to wait for the probation, the model's first 500 frames on a device, in seconds.",
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
    """Run one round of the loop in the folder WORK, up to the next step that needs a person.

    Fetches the devices' captures. If frames wait for review, the command ends and prints the review command. Otherwise
    it retrains, compares the new model with the current one and rolls it out in waves if it is not worse. An
    interrupted round is resumed by the same command. Only one process runs at a time, so a timer can start it.
    """
    chosen = choose(hosts, inventory)
    if (run is None) != (bundle is None):
        raise ConfigError("give both --run and --bundle, those of the model on the devices, or neither")
    if run is not None and bundle is not None:
        begin(work, run, bundle)
    elif not (work / STATE).is_file():
        raise ConfigError(f"{work}: no loop was started here; give --run and --bundle for the first call")

    def pull_all(folder: Path) -> Sequence[tuple[str, Pulled | EdgeloopError]]:
        with _console.counting("captures") as on_progress:
            return each(
                chosen, lambda host: pull(host, folder, keep=False, ssh_config=ssh_config, on_progress=on_progress)
            )

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
    with _console.pushing(what, quiet=False) as (on_event, wave):
        return asyncio.run(
            roll_out(
                hosts,
                what,
                choices,
                plan=plan,
                tolerate=tolerate / 100,
                on_event=on_event,
                wave=wave,
                at_once=AT_ONCE,
            )
        )
