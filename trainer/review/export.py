"""Export of labels as a CSV file with the columns ``path,label``, as `edgeloop train` reads it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from edge_agent.csv_cells import escaped


def as_csv(labels: Iterable[tuple[str, str]]) -> str:
    """Return CSV text for pairs of a path, relative to the folder of the CSV file, and a class name."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "label"))
    rows.writerows(map(escaped, labels))
    return text.getvalue()
