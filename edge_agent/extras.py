"""Commands that need more packages than the plain install has, loaded when they are called."""

from __future__ import annotations

from importlib import import_module

import click

from .errors import MissingExtraError


def load_command(name: str, module: str, attribute: str, extra: str) -> click.Command:
    """A command from its module.

    Args:
        name: as it is called.
        module: where it is.
        attribute: what it is called there.
        extra: of edgeloop that it needs; empty for the plain install.

    Raises:
        MissingExtraError: a package of the extra is not installed.
    """
    try:
        return getattr(import_module(module), attribute)  # type: ignore[no-any-return]
    except ImportError as error:
        if not extra:
            raise
        raise MissingExtraError(name, extra, error.name) from error
