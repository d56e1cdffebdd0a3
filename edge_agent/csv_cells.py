"""Cells of CSV files that no spreadsheet runs as a formula, as file names and class names may come from anyone."""

from __future__ import annotations

import re
from collections.abc import Iterable

# OWASP, "CSV Injection": the characters with which spreadsheets let a formula begin.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def escaped(cells: Iterable[object]) -> list[object]:
    """Return a row in which each text that would be a formula begins with an apostrophe; spreadsheets hide it."""
    return [f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell for cell in cells]


def unescaped(cell: str) -> str:
    """Return the text of a cell that `escaped` may have changed."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
