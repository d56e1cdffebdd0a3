"""Selects devices by the names given on the command line.

An inventory file lists devices and groups of devices::

    hosts:
      porch: pi@10.0.0.7              # name: [USER@]HOST[:PORT], or an alias in ~/.ssh/config
      barn:
        address: barn.local
        settings:                     # override agent.yaml for this device
          cameras: {stall: {source: 0}}
    groups:
      outside: [porch, barn]
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from edge_agent.config import Slug
from edge_agent.errors import ConfigError
from edge_agent.yaml_files import checked, read_yaml

MAX_BYTES = 4 * 2**20
_ADDRESS = re.compile(
    r"(?:(?P<user>[A-Za-z_][A-Za-z0-9_.-]*)@)?"
    r"(?P<host>[A-Za-z0-9_.:%-]+|\[[0-9a-fA-F:.]+(?:%[A-Za-z0-9_.-]+)?\])\Z"
)
_PORT = re.compile(r"(?P<host>[^:]+|\[.*\]):(?P<port>[0-9]{1,5})\Z")


class Host(msgspec.Struct, frozen=True):
    """A device that is reached over SSH.

    Attributes:
        name: name of the device in messages and in the inventory.
        host: address of the device, or its alias in the user's ssh_config.
        user, port: login user and port; None to use the values of ssh_config.
        settings: settings that override agent.yaml for this device.
    """

    name: str
    host: str
    user: str | None = None
    port: int | None = None
    settings: dict[str, Any] = {}

    @property
    def place(self) -> tuple[str, str | None, int | None]:
        """Host, user and port. Two entries with the same place are the same device."""
        return self.host, self.user, self.port


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    address: str
    settings: dict[str, Any] = {}


class _Inventory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    hosts: Annotated[dict[Slug, _Entry], msgspec.Meta(min_length=1)]
    groups: dict[Slug, list[str]] = {}


def choose(names: Sequence[str], inventory: Path | None) -> list[Host]:
    """Return the devices that the names stand for, in the given order.

    Args:
        names: hosts or groups of the inventory, or addresses ``[USER@]HOST[:PORT]``; all hosts of the inventory if
            empty.
        inventory: inventory file as shown above.

    Raises:
        ConfigError: a host or group is unknown, a host is listed twice, or an address is invalid. The message lists all
            problems.
    """
    hosts, groups = ({}, {}) if inventory is None else _read(inventory)
    if not names and inventory is None:
        raise ConfigError("no device given; give HOST or --inventory FILE")
    problems: list[str] = []
    chosen: dict[str, Host] = {}
    for name in names or list(hosts):
        members = groups.get(name, [name])
        if name not in groups and name in chosen:
            problems.append(f"{name} is listed twice; list it once")
        for member in members:
            host = hosts.get(member) or _addressed(member, member, problems, known=[*hosts, *groups])
            if host is not None:
                chosen[member] = host
    problems += _twice(chosen.values())
    if problems:
        raise ConfigError("; ".join(problems))
    return list(chosen.values())


def _read(path: Path) -> tuple[dict[str, Host], dict[str, list[str]]]:
    document = read_yaml(path, hint="docs/guides/deploy.md has an example", max_bytes=MAX_BYTES)
    if isinstance(document, dict) and isinstance(document.get("hosts"), dict):
        short = {name: {"address": entry} for name, entry in document["hosts"].items() if isinstance(entry, str)}
        document["hosts"] |= short
    inventory = checked(document, _Inventory, path)
    problems: list[str] = []
    hosts: dict[str, Host] = {}
    for name, entry in inventory.hosts.items():
        host = _addressed(name, entry.address, problems, settings=entry.settings)
        if host is not None:
            hosts[name] = host
    for group, members in inventory.groups.items():
        if group in hosts:
            problems.append(f"{group} is both a host and a group; rename one of them")
        problems += [f"{group}: {name} is listed twice" for name in dict.fromkeys(members) if members.count(name) > 1]
        problems += [
            f"{group}: no host is called {name}{_suggestion(name, list(hosts))}"
            for name in members
            if name not in hosts
        ]
    problems += _twice(hosts.values())
    if problems:
        raise ConfigError(f"{path}: {'; '.join(problems)}")
    return hosts, inventory.groups


def _addressed(
    name: str,
    address: str,
    problems: list[str],
    *,
    settings: Mapping[str, Any] | None = None,
    known: Sequence[str] = (),
) -> Host | None:
    """Parse a host from ``[USER@]HOST[:PORT]``. If it is invalid, append to ``problems`` and return None."""
    if known and not any(char in address for char in "@.:"):
        problems.append(f"no host or group is called {address}{_suggestion(address, known)}")
        return None
    user, at, rest = address.rpartition("@")
    with_port = _PORT.match(rest)
    host, port = (with_port["host"], int(with_port["port"])) if with_port else (rest, None)
    if not _ADDRESS.match(f"{user}{at}{host}") or (port is not None and not 0 < port < 65536):
        problems.append(f"{address[:100]!r} is not an address; expected [USER@]HOST[:PORT]")
        return None
    return Host(name, host.strip("[]"), user or None, port, dict(settings or {}))


def _twice(hosts: Any) -> list[str]:
    first: dict[tuple[str, str | None, int | None], str] = {}
    return [
        f"{host.name} and {first[host.place]} are the same device; list it once"
        for host in hosts
        if first.setdefault(host.place, host.name) != host.name
    ]


def _suggestion(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(list(known)[:20]) or 'none'}"
