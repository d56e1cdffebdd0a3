"""Where a device's store is, and the options that say so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..config import DEFAULT_PATH, Settings, load_settings


@dataclass(frozen=True)
class Place:
    """Where a device's store is, and what holds for it.

    Attributes:
        state: its directory.
        signers: who may have signed a bundle; None where nobody need have.
        threads, delegate: the agent's, which a model is to prove itself with.
    """

    state: Path
    signers: Path | None = None
    threads: int | None = None
    delegate: str | None = None


def find_store(config: Path | None, root: Path) -> Place:
    """The store that agent.yaml names; the usual one where there is no agent.yaml.

    Args:
        config: agent.yaml; the usual one under ``root`` when left out, which need not be there.
        root: directory that stands for ``/`` in the usual paths and in those that agent.yaml names.

    Raises:
        ConfigError: agent.yaml cannot be used.
    """
    usual = _under(root, DEFAULT_PATH)
    if config is None and not usual.exists():
        signers = usual.with_name("allowed_signers")
        return Place(_under(root, Path(_default("state"))), signers if signers.exists() else None)
    settings = load_settings(usual if config is None else config)
    return Place(
        _under(root, Path(settings.state)),
        None if settings.allowed_signers is None else _under(root, Path(settings.allowed_signers)),
        settings.threads,
        settings.delegate,
    )


def store_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--config`` and ``--root``, the same for every command of the store."""
    config = click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        help=f"The agent's settings, which say where the store is.  [default: {DEFAULT_PATH}, if it is there]",
    )
    root = click.option(
        "--root",
        type=click.Path(path_type=Path, file_okay=False, exists=True),
        default=Path("/"),
        help="Directory that stands for / in all paths of the device.",
    )
    return config(root(command))


def _under(root: Path, path: Path) -> Path:
    root = root.resolve()
    return path if path.is_relative_to(root) else root / path.relative_to("/")


def _default(name: str) -> str:
    import msgspec

    return next(str(field.default) for field in msgspec.structs.fields(Settings) if field.name == name)
