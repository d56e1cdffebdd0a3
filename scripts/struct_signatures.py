"""Extends Griffe so that the API reference shows the fields of structs and named tuples as constructor parameters."""

from __future__ import annotations

from typing import Any

import griffe

BASES = {"Struct", "NamedTuple"}


class StructSignatures(griffe.Extension):
    """Gives each class the ``__init__`` that msgspec or NamedTuple generates for it at run time."""

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Add ``__init__`` to a struct or named tuple. Griffe calls this after it has read the members of a class."""
        if not BASES & {str(base).rpartition(".")[2] for base in cls.bases}:
            return
        parameters = [griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)]
        parameters += [
            griffe.Parameter(
                name,
                annotation=field.annotation,
                kind=griffe.ParameterKind.positional_or_keyword,
                default=field.value,
            )
            for name, field in cls.members.items()
            if isinstance(field, griffe.Attribute) and field.annotation is not None and "property" not in field.labels
        ]
        init = griffe.Function("__init__", parameters=griffe.Parameters(*parameters))
        cls.set_member("__init__", init)
