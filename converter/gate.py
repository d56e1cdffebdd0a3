"""The gate: checks on the frozen test split that a quantized model must pass before it is packed."""

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
"""Default limit for the loss of accuracy, in percentage points.

EfficientNet-Lite0 lost 0.3 and 0.5 points in our measurements and 0.7 in Google's. A loss above 1 point indicates a
problem.
"""
DEFAULT_MAX_CLASS_DROP = 10.0
"""Default limit for the loss of one class's recall, in percentage points.

With 100 images of a class, the recall of two similar models differs by about 4 points.
"""
ALLOWABLE = ("drop", "class-drop", "agreement", "constant", "slow")
"""Checks that `--allow` can override.

Scores that are not numbers cannot be allowed, because no device could use them.
"""
SLOWER_RATIO = 1.05
"""A model counts as slower only if its latency is more than this many times the latency of the float model.

Two measurements of the same model differ by a few percent.
"""
SLOWER_MS = 0.2
"""A model counts as slower only if its latency is greater by more than this, in milliseconds.

In a network that takes only microseconds, the conversion of the input takes most of the time.
"""
_ROUNDS, _WARM_UP = 40, 5


class Refusal(NamedTuple):
    """A failed check: its name and the reason."""

    check: str
    reason: str


@dataclass(frozen=True)
class GateLimits:
    """Limits of the gate.

    Attributes:
        max_drop: maximum loss of accuracy, in percentage points.
        max_class_drop: maximum loss of one class's recall, in percentage points.
        min_agreement: minimum percentage of images on which the float and the int8 model predict the same class.
        allowed: names of the checks that a model may fail; each is one of `ALLOWABLE`.
    """

    max_drop: float = DEFAULT_MAX_DROP
    max_class_drop: float = DEFAULT_MAX_CLASS_DROP
    min_agreement: float = 0.0
    allowed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Verdict:
    """Accuracy and latency of the float model and of the converted model, measured on the same images.

    Attributes:
        float32: evaluation of the float model.
        model: evaluation of the model to be packed.
        float_ms: median latency of the float model on this machine, in milliseconds.
        model_ms: median latency of the model to be packed, in milliseconds. The two models are measured alternately.
        slow_operations: for each kind of operation, the number of operations that the runtime computes outside its
            fast path. None if the model to be packed is a float model, because such a model may be slower.
    """

    float32: Evaluation
    model: Evaluation
    float_ms: float = 0.0
    model_ms: float = 0.0
    slow_operations: Counter[str] | None = None

    @property
    def drop(self) -> float:
        """Accuracy that the conversion loses, in percentage points; negative if the converted model is better."""
        return 100 * (self.float32.accuracy - self.model.accuracy)

    @property
    def agreement(self) -> float:
        """Fraction of the images on which both models predict the same class, 0 to 1."""
        return self.model.agreement(self.float32)

    def metrics(self) -> Metrics:
        """Return the metrics for the manifest. Latencies are left out, because they differ between conversions."""
        return Metrics(
            images=len(self.model.truth),
            float32=_scored(self.float32),
            model=_scored(self.model),
            agreement=self.agreement,
            score_counts=_score_counts(self.model),
        )

    def refusals(self, limits: GateLimits) -> list[Refusal]:
        """Return all failed checks, including those that ``limits`` allows to fail."""
        if not np.isfinite(self.model.scores).all():
            return [Refusal("not-a-number", "it gives scores that are not numbers")]
        found = []
        if len(self.model.scores) > 1 and (self.model.scores == self.model.scores[0]).all():
            found.append(Refusal("constant", "it gives the same scores for every image"))
        # The tolerance keeps float rounding from failing a drop that equals the limit.
        if self.drop > limits.max_drop + 1e-9:
            found.append(
                Refusal(
                    "drop",
                    f"its accuracy on {len(self.model.truth)} test images is {100 * self.model.accuracy:.1f} %, float "
                    f"has {100 * self.float32.accuracy:.1f} %: {self.drop:.1f} points lost, at most "
                    f"{limits.max_drop:g} allowed (--max-drop)",
                )
            )
        found += self._lost_classes(limits.max_class_drop)
        if 100 * self.agreement < limits.min_agreement - 1e-9:
            found.append(
                Refusal(
                    "agreement",
                    f"it predicts the same class as float on {100 * self.agreement:.1f} % of the test images, "
                    f"at least {limits.min_agreement:g} required (--min-agreement)",
                )
            )
        if self.slow_operations is not None and _slower(self.float_ms, self.model_ms):
            found.append(
                Refusal(
                    "slow",
                    f"it takes {self.model_ms:.1f} ms here, float {self.float_ms:.1f} ms{self._why_slow()}; train "
                    "efficientnet-lite0 or mobilenet-v2, or convert with --method float16",
                )
            )
        return found

    def _lost_classes(self, allowed: float) -> list[Refusal]:
        before, after, images = self.float32.recall(), self.model.recall(), self.model.support()
        lost = {label: before[label] - after[label] for label in before}
        # A single image never fails a class.
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
        return f", because {named} run outside the runtime's fast path"


def refused(refusals: Sequence[Refusal], limits: GateLimits) -> list[Refusal]:
    """Return the failed checks that ``limits`` does not allow to fail."""
    return [refusal for refusal in refusals if refusal.check not in limits.allowed]


def gate_error(refusals: Sequence[Refusal], what: str) -> GateError:
    """Return an error that lists all reasons in one line, and the options that would allow the model, if any."""
    named = " ".join(f"--allow {one.check}" for one in refusals if one.check in ALLOWABLE)
    remedy = f"; to pack it anyway: {named}" if all(one.check in ALLOWABLE for one in refusals) else ""
    return GateError(f"refused: {what}: {'; '.join(one.reason for one in refusals)}; nothing was written{remedy}")


def timed_ms(float32: bytes, model: bytes) -> tuple[float, float]:
    """Measure the two models alternately and return their median latencies in milliseconds, the float model's first.

    The models run with the default number of threads. If the converted model is slower, both models are measured again
    with one thread, and these latencies are returned. The reason: on a busy machine, the threads of the faster model
    mostly wait for a core.
    """
    float_ms, model_ms = latencies_ms([float32, model])
    if _slower(float_ms, model_ms):
        float_ms, model_ms = latencies_ms([float32, model], threads=1)
    return float_ms, model_ms


def _slower(float_ms: float, model_ms: float) -> bool:
    return model_ms > max(SLOWER_RATIO * float_ms, float_ms + SLOWER_MS)


def latencies_ms(models: Sequence[bytes], *, threads: int | None = None) -> list[float]:
    """Return the median latency of one inference of each model, in milliseconds.

    The models take turns, so that a temporary slowdown of the machine affects all of them.

    Args:
        models: contents of ``.tflite`` files.
        threads: number of inference threads; None for the default number.
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


def _score_counts(evaluation: Evaluation) -> ScoreCounts:
    counter = ScoreCounter()
    for label, score in zip(evaluation.predicted, evaluation.scores.max(axis=1), strict=True):
        counter.add(evaluation.labels[label], float(score))
    return counter.now()


def _scored(evaluation: Evaluation) -> Scored:
    # Readers reject NaN in a manifest; the gate has refused such models before.
    return Scored(evaluation.accuracy, evaluation.recall(), evaluation.calibration_error())
