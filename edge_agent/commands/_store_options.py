"""Location of a device's model store, and the command-line options that select it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..config import DEFAULT_PATH, Settings, load_settings


@dataclass(frozen=True)
class StoreLocation:
    """Location of a device's store, with the settings that apply to it.

    Attributes:
        state: directory of the store.
        signers: file of allowed signers; None accepts unsigned bundles.
        threads, delegate: settings of the agent, which the canary test uses as well.
    """

    state: Path
    signers: Path | None = None
    threads: int | None = None
    delegate: str | None = None


def find_store(config: Path | None, root: Path) -> StoreLocation:
    """Return the store that agent.yaml names, or the default store if there is no agent.yaml.

    Args:
        config: path of agent.yaml; by default the standard path under ``root``, where the file may be missing.
        root: directory that replaces ``/`` in the default paths and in the paths that agent.yaml names.

    Raises:
        ConfigError: agent.yaml cannot be used.
    """
    default = _under(root, DEFAULT_PATH)
    if config is None and not default.exists():
        signers = default.with_name("allowed_signers")
        return StoreLocation(_under(root, Path(_default("state"))), signers if signers.exists() else None)
    settings = load_settings(default if config is None else config)
    return StoreLocation(
        _under(root, Path(settings.state)),
        None if settings.allowed_signers is None else _under(root, Path(settings.allowed_signers)),
        settings.threads,
        settings.delegate,
    )


def store_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--config`` and ``--root``, which all commands of the store share."""
    config = click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        help=f"Settings of the agent, which name the store.  [default: {DEFAULT_PATH}, if it exists]",
    )
    root = click.option(
        "--root",
        type=click.Path(path_type=Path, file_okay=False, exists=True),
        default=Path("/"),
        help="Directory that replaces / in all paths of the device.",
    )
    return config(root(command))


def _under(root: Path, path: Path) -> Path:
    root = root.resolve()
    return path if path.is_relative_to(root) else root / path.relative_to("/")


def _default(name: str) -> str:
    import msgspec

    return next(str(field.default) for field in msgspec.structs.fields(Settings) if field.name == name)
