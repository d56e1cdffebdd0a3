"""A benchmark's figures: printed for whoever runs it, and gathered for `make bench`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

# `make bench` names the file that its parts append to.
GATHERED = "EDGELOOP_FIGURES"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured value, and what was aimed at."""

    name: str
    value: float
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def wanted(self) -> str:
        """The aim in words; empty where there is none."""
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least:g} to {self.at_most:g}"
        if self.at_least is not None:
            return f"at least {self.at_least:g}"
        return "" if self.at_most is None else f"at most {self.at_most:g}"

    @property
    def reached(self) -> bool | None:
        """Whether the aim is met; None without one."""
        if not self.wanted:
            return None
        low = self.at_least is None or self.value >= self.at_least
        return low and (self.at_most is None or self.value <= self.at_most)

    @property
    def told(self) -> str:
        """The value with its unit, to three significant digits where it has no more before the point."""
        digits = f"{self.value:,.0f}" if abs(self.value) >= 100 else f"{self.value:.3g}"
        return f"{digits} {self.unit}".rstrip()


def tell(
    name: str, value: float, unit: str = "", *, at_least: float | None = None, at_most: float | None = None
) -> None:
    """Print one figure, and append it to the file that `make bench` names."""
    figure = Figure(name=name, value=float(value), unit=unit, at_least=at_least, at_most=at_most)
    aim = f" (wanted {figure.wanted}: {'reached' if figure.reached else 'missed'})" if figure.wanted else ""
    print(f"{name}: {figure.told}{aim}", flush=True)
    if gathered := os.environ.get(GATHERED):
        with open(gathered, "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(figure)) + "\n")


def read_figures(path: Path) -> list[Figure]:
    """What a part told, in its order."""
    return [Figure(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
