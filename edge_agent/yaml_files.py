"""Safe reading of YAML files: limited size, no aliases, all problems reported at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin

import msgspec
import yaml

from .errors import ConfigError

MAX_BYTES = 256 * 1024

Struct = TypeVar("Struct", bound=msgspec.Struct)


def read_yaml(path: Path, *, hint: str = "", max_bytes: int = MAX_BYTES) -> Any:
    """Read a YAML file as mappings, lists and scalars.

    Args:
        path: The file.
        hint: What the user can do if the file cannot be read; appended to the error message.
        max_bytes: Largest accepted size of the file.

    Raises:
        ConfigError: The file cannot be read, or is not valid YAML.
    """
    try:
        if path.stat().st_size > max_bytes:
            raise ConfigError(f"{path}: over {max_bytes // 1024} KiB, the limit for such files; is it the right file?")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}{f'; {hint}' if hint else ''}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text") from error
    try:
        return yaml.load(text, _Loader)  # noqa: S506  a SafeLoader, with less
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}: not YAML{where}: {getattr(error, 'problem', None) or error}") from error
    except (ValueError, KeyError, AttributeError) as error:
        # Raised by PyYAML's constructors for values that do not fit their type: 2026-99-99, !!bool maybe
        raise ConfigError(f"{path}: contains a value that does not fit its type: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply") from error


def checked(document: Any, kind: type[Struct], source: object) -> Struct:
    """Convert a parsed document to a struct. Unknown keys are errors, with a suggestion.

    Args:
        document: Mappings, lists and scalars.
        kind: Type to convert to.
        source: Name of the file, for error messages.

    Raises:
        ConfigError: The document does not fit the type; the message lists every problem found.
    """
    problems = list(_problems(document, kind, ""))
    if problems:
        raise ConfigError(f"{source}: {'; '.join(problems)}")
    return msgspec.convert(document, kind)


class _Loader(yaml.SafeLoader):
    """A loader that rejects aliases, which can expand without limit, and duplicate keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not supported", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002  theirs
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value!r}", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _problems(value: Any, expected: Any, where: str) -> Iterator[str]:
    """Yield all differences between a parsed document and a type. (msgspec itself stops at the first one.)"""
    # The members of a union and what is annotated, but not the types of a dict's keys and values.
    members = () if get_origin(expected) in (dict, list, tuple) else get_args(expected)
    optional = NoneType in members
    kinds = [kind for kind in (expected, *members) if isinstance(kind, type)]
    struct = next((kind for kind in kinds if issubclass(kind, msgspec.Struct)), None)
    if struct is not None and not (value is None and optional):
        if not isinstance(value, dict):
            yield f"{where or 'the file'}: expected keys and values, found {_described(value)}"
            return
        fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
        for key in [key for key in value if key not in fields]:
            close = difflib.get_close_matches(str(key), fields, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(fields)}"
            yield f"unknown key {_path(where, key)!r}, {hint}"
        for name, field in fields.items():
            if name in value:
                yield from _problems(value[name], field.type, _path(where, name))
            elif field.required:
                yield f"{_path(where, name)!r} is missing"
        return
    inner = get_args(expected)[0] if get_origin(expected) is Annotated else expected
    if get_origin(inner) is dict and isinstance(value, dict):
        key_type, value_type = get_args(inner)
        for key, item in value.items():
            yield from _problems(key, key_type, f"{where}: name {key!r}")
            yield from _problems(item, value_type, _path(where, key))
        value = dict.fromkeys(value)  # Only the number of entries remains to be checked.
        expected = (
            Annotated[dict[Any, None], *expected.__metadata__] if get_origin(expected) is Annotated else dict[Any, None]
        )
    try:
        msgspec.convert(value, expected)
    except msgspec.ValidationError as error:
        yield f"{where}: {_said(error, expected)}, found {_described(value)}"


def _said(error: msgspec.ValidationError, expected: Any) -> str:
    """Return msgspec's message; instead of a regular expression, it shows the description that the type gives."""
    message = str(error)
    if " matching regex " in message:
        described = next((meta.description for meta in _metas(expected) if meta.pattern and meta.description), None)
        if described:
            return f"expected {described}"
    return f"{message[:1].lower()}{message[1:]}"


def _metas(expected: Any) -> Iterator[msgspec.Meta]:
    yield from (meta for meta in getattr(expected, "__metadata__", ()) if isinstance(meta, msgspec.Meta))
    for inner in get_args(expected):
        yield from _metas(inner)


def _path(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _described(value: Any) -> str:
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return "nothing" if value is None else repr(value)[:60]
