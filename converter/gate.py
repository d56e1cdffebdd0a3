"""The gate: what quantization lost on the frozen test split, judged before anything is packed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edge_agent.bundle.manifest import Metrics, Scored
from edge_agent.errors import GateError
from edge_agent.inference.evaluation import Evaluation
from edge_agent.inference.interpreter import Interpreter
from edge_agent.monitoring.score_counts import ScoreCounter, ScoreCounts

DEFAULT_MAX_DROP = 1.0
"""Points of accuracy. EfficientNet-Lite0 lost 0.3 and 0.5 in our measurements, 0.7 in Google's; over 1 is broken."""
DEFAULT_MAX_CLASS_DROP = 10.0
"""Points of one class's recall. On 100 images of a class two evaluations of like models differ by some 4."""
ALLOWABLE = ("drop", "class-drop", "agreement", "constant", "slow")
"""What may be let through by name. Scores that are not numbers may not: no device could act on them."""
NOISE = 1.05
"""An int8 model is called slower only above this ratio: two timings of one model differ by a few percent."""
UNNOTICED_MS = 0.2
"""Nor by less than this: in a network of microseconds the conversion of the input is all there is to time."""
_ROUNDS, _WARM_UP = 40, 5


class Refusal(NamedTuple):
    """Why a model may not be packed: which check, and what it found."""

    check: str
    reason: str


@dataclass(frozen=True)
class GateLimits:
    """What a model may lose.

    Attributes:
        max_drop: points of accuracy.
        max_class_drop: points of one class's recall.
        min_agreement: percent of the images on which float and int8 must name the same class.
        allowed: names of `ALLOWABLE` checks that do not refuse.
    """

    max_drop: float = DEFAULT_MAX_DROP
    max_class_drop: float = DEFAULT_MAX_CLASS_DROP
    min_agreement: float = 0.0
    allowed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Verdict:
    """The float model and the one made of it, scored on the same images by the device's classifier, and timed.

    Attributes:
        float32: the float model's scores.
        model: those of the model to be packed.
        float_ms: the float model's median inference here, milliseconds.
        model_ms: that of the model to be packed, measured in turn with it.
        slow_operations: how many operations of each kind the runtime computes outside its fast path; None for a float
            model, which nobody expects to be faster than float.
    """

    float32: Evaluation
    model: Evaluation
    float_ms: float = 0.0
    model_ms: float = 0.0
    slow_operations: Counter[str] | None = None

    @property
    def drop(self) -> float:
        """Accuracy lost, in points; negative when the model is better."""
        return 100 * (self.float32.accuracy - self.model.accuracy)

    @property
    def agreement(self) -> float:
        """Share of images on which both name the same class first."""
        return self.model.agreement(self.float32)

    def metrics(self) -> Metrics:
        """As the bundle records it. Without the times, which would differ from one conversion to the next."""
        return Metrics(
            images=len(self.model.truth),
            float32=_scored(self.float32),
            model=_scored(self.model),
            agreement=self.agreement,
            seen=_seen(self.model),
        )

    def refusals(self, limits: GateLimits) -> list[Refusal]:
        """Everything that speaks against the model, allowed or not."""
        if not np.isfinite(self.model.scores).all():
            return [Refusal("not-a-number", "it gives scores that are not numbers")]
        found = []
        if len(self.model.scores) > 1 and (self.model.scores == self.model.scores[0]).all():
            found.append(Refusal("constant", "it gives the same scores for every image"))
        # The share of one image must not slip through as a rounding error of floats.
        if self.drop > limits.max_drop + 1e-9:
            found.append(
                Refusal(
                    "drop",
                    f"it recognises {100 * self.model.accuracy:.1f} % of {len(self.model.truth)} test images, float "
                    f"{100 * self.float32.accuracy:.1f} %: {self.drop:.1f} points lost, {limits.max_drop:g} allowed "
                    "(--max-drop)",
                )
            )
        found += self._lost_classes(limits.max_class_drop)
        if 100 * self.agreement < limits.min_agreement - 1e-9:
            found.append(
                Refusal(
                    "agreement",
                    f"it names the same class as float on {100 * self.agreement:.1f} % of the test images, "
                    f"{limits.min_agreement:g} wanted (--min-agreement)",
                )
            )
        if self.slow_operations is not None and _slower(self.float_ms, self.model_ms):
            found.append(
                Refusal(
                    "slow",
                    f"it takes {self.model_ms:.1f} ms here, float {self.float_ms:.1f} ms{self._why_slow()}; train on "
                    "efficientnet-lite0 or mobilenet-v2, or pack --method float16",
                )
            )
        return found

    def _lost_classes(self, allowed: float) -> list[Refusal]:
        before, after, images = self.float32.recall(), self.model.recall(), self.model.support()
        lost = {label: before[label] - after[label] for label in before}
        # One image of a class is never enough to say that the class was lost.
        worst = [
            label
            for label in sorted(lost, key=lambda label: -lost[label])
            if 100 * lost[label] > allowed + 1e-9 and lost[label] * images[label] > 1.5
        ]
        if not worst:
            return []
        named = ", ".join(f"{label} {100 * before[label]:.0f} -> {100 * after[label]:.0f} %" for label in worst[:5])
        more = f" and {len(worst) - 5} more" if len(worst) > 5 else ""
        return [Refusal("class-drop", f"classes lost more than {allowed:g} points (--max-class-drop): {named}{more}")]

    def _why_slow(self) -> str:
        if not self.slow_operations:
            return ""
        named = ", ".join(f"{count} {kind}" for kind, count in self.slow_operations.most_common(4))
        return f", because {named} are off the runtime's fast path"


def refused(refusals: Sequence[Refusal], limits: GateLimits) -> list[Refusal]:
    """Those of the refusals that nobody has allowed."""
    return [refusal for refusal in refusals if refusal.check not in limits.allowed]


def gate_error(refusals: Sequence[Refusal], what: str) -> GateError:
    """The error that says so in one line, and what would let the model through."""
    named = " ".join(f"--allow {one.check}" for one in refusals if one.check in ALLOWABLE)
    remedy = f"; to pack it all the same: {named}" if all(one.check in ALLOWABLE for one in refusals) else ""
    return GateError(f"refused: {what}: {'; '.join(one.reason for one in refusals)}; nothing was written{remedy}")


def timed_ms(float32: bytes, model: bytes) -> tuple[float, float]:
    """Median inference of the float model and of the one made of it, milliseconds, in turn.

    With the device's default threads; where that says slower, with one thread, and that counts: on a busy machine the
    threads of the faster model wait for a core more often than they compute.
    """
    float_ms, model_ms = latencies_ms([float32, model])
    if _slower(float_ms, model_ms):
        float_ms, model_ms = latencies_ms([float32, model], threads=1)
    return float_ms, model_ms


def _slower(float_ms: float, model_ms: float) -> bool:
    return model_ms > max(NOISE * float_ms, float_ms + UNNOTICED_MS)


def latencies_ms(models: Sequence[bytes], *, threads: int | None = None) -> list[float]:
    """Median time of one inference of each model, milliseconds.

    They take turns, so that a machine that slows down does so for all of them.

    Args:
        models: ``.tflite`` files.
        threads: inference threads; the device's default when left out.
    """
    loaded = [Interpreter(model, threads=threads) for model in models]
    times = np.empty((_ROUNDS, len(loaded)))
    try:
        for row in range(-_WARM_UP, _ROUNDS):
            for column, model in enumerate(loaded):
                start = time.perf_counter_ns()
                model.invoke()
                if row >= 0:
                    times[row, column] = (time.perf_counter_ns() - start) / 1e6
    finally:
        for model in loaded:
            model.close()
    medians: list[float] = np.median(times, axis=0).tolist()
    return medians


def _seen(evaluation: Evaluation) -> ScoreCounts:
    counted = ScoreCounter()
    for label, score in zip(evaluation.predicted, evaluation.scores.max(axis=1), strict=True):
        counted.add(evaluation.labels[label], float(score))
    return counted.now()


def _scored(evaluation: Evaluation) -> Scored:
    # NaN would make a bundle no reader takes; a model that gives any is refused before.
    return Scored(evaluation.accuracy, evaluation.recall(), evaluation.calibration_error())
