"""Jinja environment of the HTML pages: all text is escaped, and an undefined name is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


def environment(*packages: str) -> Environment:
    """Return an environment that reads the ``templates`` folders of packages; the first with a given name wins."""
    from jinja2 import ChoiceLoader, PackageLoader, StrictUndefined, select_autoescape
    from jinja2 import Environment as Templates

    return Templates(
        loader=ChoiceLoader([PackageLoader(package) for package in packages]),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
