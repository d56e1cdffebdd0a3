"""Lazy loading of commands, some of which need optional packages."""

from __future__ import annotations

from importlib import import_module

import click

from .errors import MissingExtraError


def load_command(name: str, module: str, attribute: str, extra: str) -> click.Command:
    """Import the module of a command and return the command.

    Args:
        name: Name of the command, for the error message.
        module: Module that defines the command.
        attribute: Name of the command object in the module.
        extra: Extra of edgeloop that the command needs; empty if it needs none.

    Raises:
        MissingExtraError: A package of the extra is not installed.
    """
    try:
        return getattr(import_module(module), attribute)  # type: ignore[no-any-return]
    except ImportError as error:
        if not extra:
            raise
        raise MissingExtraError(name, extra, error.name) from error
