"""One thing done with many devices: how the command line names them, some at a time, and what failed at the end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from edge_agent.errors import EdgeloopError, one_line

from ..fleet.inventory import Host
from ..fleet.rollout import AT_ONCE

Result = TypeVar("Result")


def takes_hosts(command: Callable[..., Any]) -> Callable[..., Any]:
    """HOST..., --inventory and --ssh-config, the same for every command."""
    path = click.Path(path_type=Path, dir_okay=False, exists=True)
    hosts = click.argument("hosts", metavar="[HOST]...", nargs=-1)
    inventory = click.option("--inventory", "-i", type=path, help="YAML file of hosts and groups.")
    ssh_config = click.option("--ssh-config", "-F", type=path, help="Instead of ~/.ssh/config.")
    return hosts(inventory(ssh_config(command)))


async def all_of(
    hosts: Sequence[Host], do: Callable[[Host], Awaitable[Result]]
) -> list[tuple[str, Result | EdgeloopError]]:
    """The same with each host, some at a time: its result, or why there is none."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(host: Host) -> tuple[str, Result | EdgeloopError]:
        async with gate:
            try:
                return host.name, await do(host)
            except EdgeloopError as error:
                return host.name, error

    return list(await asyncio.gather(*(one(host) for host in hosts)))


def each(hosts: Sequence[Host], do: Callable[[Host], Awaitable[Result]]) -> list[tuple[str, Result | EdgeloopError]]:
    """The same, from where nothing else runs."""
    return asyncio.run(all_of(hosts, do))


def end(results: Sequence[tuple[str, Any]]) -> None:
    """Say what failed, and end with 1 if anything did."""
    failed = [result for _, result in results if isinstance(result, EdgeloopError)]
    for error in failed:
        click.echo(f"edgeloop: {one_line(error)}", err=True)
    if failed:
        sys.exit(1)
