"""Writes the command line reference from the click commands. MkDocs loads this file as a hook.

A line ``commands: train evaluate`` in docs/reference/cli.md is replaced by one section for each of these commands.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parent.parent))

from edge_agent.cli import COMMANDS, cli

PAGE = "reference/cli.md"
MARKER = re.compile(r"^commands: (.+)$", re.MULTILINE)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Replace the ``commands:`` lines of the reference page. MkDocs calls this for every page before it renders it."""
    if page.file.src_uri != PAGE:
        return markdown
    root = click.Context(cli, info_name="edgeloop")
    return MARKER.sub(lambda found: "\n".join(_sections(found[1].split(), root)), markdown)


def _sections(names: list[str], root: click.Context) -> Iterator[str]:
    for name in names:
        command = cli.get_command(root, name)
        if command is None:
            raise SystemExit(f"{PAGE}: no command is called {name!r}")
        yield from _section(command, click.Context(command, root, info_name=name), depth=3, extra=COMMANDS[name][2])


def _section(command: click.Command, context: click.Context, *, depth: int, extra: str = "") -> Iterator[str]:
    yield from (f"{'#' * depth} {context.command_path}", "")
    for paragraph in (command.help or "").split("\n\n"):
        yield from (_escaped(" ".join(paragraph.split())), "")
    if extra:
        yield from (f"Requires `pip install 'edgeloop[{extra}]'`.", "")
    usage = " ".join((context.command_path, *command.collect_usage_pieces(context)))
    yield from ("```text", usage, "```", "")
    rows = [row for option in command.params if (row := _row(option, context))]
    if rows:
        yield from ("| option | meaning |", "| --- | --- |", *rows, "")
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None and not inner.hidden:
                yield from _section(inner, click.Context(inner, context, info_name=name), depth=depth + 1)


def _row(option: click.Parameter, context: click.Context) -> str | None:
    """Return the table row of an option, or None for arguments and hidden options."""
    if not isinstance(option, click.Option) or (record := option.get_help_record(context)) is None:
        return None
    facts = option.get_help_extra(context)
    sentences = [_escaped(option.help or "")]
    if "required" in facts:
        sentences.append("Required.")
    if "range" in facts:
        sentences.append(f"Range: `{facts['range']}`.")
    if "default" in facts:
        sentences.append(f"Default: `{facts['default']}`.")
    name = record[0].replace(" RANGE", "")
    return f"| `{name}` | {' '.join(sentences)} |"


def _escaped(text: str) -> str:
    """Escape the characters that Markdown would interpret, except in code spans."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([\\*_\[\]<>|#])", r"\\\1", part) for part in parts)
