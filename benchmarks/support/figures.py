"""Figures of the benchmarks, printed and collected for `make bench`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

# Environment variable with the file that the parts of `make bench` append to.
GATHERED = "EDGELOOP_FIGURES"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A measured value and its target."""

    name: str
    value: float
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def target(self) -> str:
        """Description of the target; empty if there is none."""
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least:g} to {self.at_most:g}"
        if self.at_least is not None:
            return f"at least {self.at_least:g}"
        return "" if self.at_most is None else f"at most {self.at_most:g}"

    @property
    def reached(self) -> bool | None:
        """True if the target is reached; None without a target."""
        if not self.target:
            return None
        low = self.at_least is None or self.value >= self.at_least
        return low and (self.at_most is None or self.value <= self.at_most)

    @property
    def text(self) -> str:
        """The value with its unit, to three significant digits; values from 100 on are rounded to whole numbers."""
        digits = f"{self.value:,.0f}" if abs(self.value) >= 100 else f"{self.value:.3g}"
        return f"{digits} {self.unit}".rstrip()


def record(
    name: str, value: float, unit: str = "", *, at_least: float | None = None, at_most: float | None = None
) -> None:
    """Print a figure and append it to the file of `make bench`, if there is one."""
    figure = Figure(name=name, value=float(value), unit=unit, at_least=at_least, at_most=at_most)
    result = f" (target {figure.target}: {'reached' if figure.reached else 'missed'})" if figure.target else ""
    print(f"{name}: {figure.text}{result}", flush=True)
    if gathered := os.environ.get(GATHERED):
        with open(gathered, "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(figure)) + "\n")


def read_figures(path: Path) -> list[Figure]:
    """Read the recorded figures of a part, in order."""
    return [Figure(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
