"""Shared parts of the commands for many devices: options for hosts, concurrent execution and error messages."""

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
    """Decorate a command with the argument HOST... and the options --inventory and --ssh-config."""
    path = click.Path(path_type=Path, dir_okay=False, exists=True)
    hosts = click.argument("hosts", metavar="[HOST]...", nargs=-1)
    inventory = click.option("--inventory", "-i", type=path, help="YAML file of hosts and groups.")
    ssh_config = click.option(
        "--ssh-config", "-F", type=path, help="SSH configuration file to use instead of ~/.ssh/config."
    )
    return hosts(inventory(ssh_config(command)))


async def all_of(
    hosts: Sequence[Host], do: Callable[[Host], Awaitable[Result]]
) -> list[tuple[str, Result | EdgeloopError]]:
    """Call ``do`` for every host, with a limited number of calls at a time. Return the result or error of each host."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(host: Host) -> tuple[str, Result | EdgeloopError]:
        async with gate:
            try:
                return host.name, await do(host)
            except EdgeloopError as error:
                return host.name, error

    return list(await asyncio.gather(*(one(host) for host in hosts)))


def each(hosts: Sequence[Host], do: Callable[[Host], Awaitable[Result]]) -> list[tuple[str, Result | EdgeloopError]]:
    """Run `all_of` in a new event loop."""
    return asyncio.run(all_of(hosts, do))


def end(results: Sequence[tuple[str, Any]]) -> None:
    """Print the errors among the results. Exit with status 1 if there are any."""
    failed = [result for _, result in results if isinstance(result, EdgeloopError)]
    for error in failed:
        click.echo(f"edgeloop: {one_line(error)}", err=True)
    if failed:
        sys.exit(1)
