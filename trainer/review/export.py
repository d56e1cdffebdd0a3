"""Labels as `edgeloop train` reads them: a CSV file of ``path,label``."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable


def as_csv(labels: Iterable[tuple[str, str]]) -> str:
    """Rows of a path, relative to the file's own folder, and a class name."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "label"))
    rows.writerows(labels)
    return text.getvalue()
