"""Creates the Jinja environment for HTML pages.

The environment escapes all text that is inserted into a page. A template that uses an undefined name causes an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


def environment(*packages: str) -> Environment:
    """Return an environment that reads templates from the ``templates`` folders of the given packages.

    If several packages contain a template with the same name, the template of the first package is used.
    """
    from jinja2 import ChoiceLoader, PackageLoader, StrictUndefined, select_autoescape
    from jinja2 import Environment as Templates

    return Templates(
        loader=ChoiceLoader([PackageLoader(package) for package in packages]),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
