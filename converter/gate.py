"""The gate: what int8 lost on the frozen test split, judged before anything is packed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_agent.errors import GateError
from edge_agent.evaluation import Evaluation
from edge_agent.manifest import Metrics, Scored

DEFAULT_MAX_DROP = 1.0
"""Points of accuracy. EfficientNet-Lite0 lost 0.3 and 0.5 in our measurements, 0.7 in Google's; over 1 is broken."""


@dataclass(frozen=True)
class Verdict:
    """The float model and the int8 one, scored on the same pictures by the device's classifier."""

    float32: Evaluation
    int8: Evaluation

    @property
    def drop(self) -> float:
        """Accuracy lost, in points; negative when int8 is better."""
        return 100 * (self.float32.accuracy - self.int8.accuracy)

    def metrics(self) -> Metrics:
        """As the bundle records it."""
        return Metrics(
            pictures=len(self.int8.truth),
            float32=Scored(self.float32.accuracy, self.float32.recall()),
            int8=Scored(self.int8.accuracy, self.int8.recall()),
            agreement=self.int8.agreement(self.float32),
        )

    def check(self, max_drop: float) -> None:
        """Refuse a quantized model that is broken or lost too much.

        Args:
            max_drop: points of accuracy it may lose.

        Raises:
            GateError: with the figures.
        """
        if not np.isfinite(self.int8.scores).all():
            raise GateError("refused: the int8 model gives scores that are not numbers; nothing was written")
        if len(self.int8.scores) > 1 and (self.int8.scores == self.int8.scores[0]).all():
            raise GateError("refused: the int8 model gives the same scores for every picture; nothing was written")
        # The share of one picture must not slip through as a rounding error of floats.
        if self.drop > max_drop + 1e-9:
            raise GateError(
                f"refused: int8 recognises {100 * self.int8.accuracy:.1f} % of {len(self.int8.truth)} test pictures, "
                f"float {100 * self.float32.accuracy:.1f} %: {self.drop:.1f} points lost, "
                f"{max_drop:g} allowed (--max-drop); nothing was written"
            )
