"""The figures of `metrics.json` and of `edgeloop evaluate --json`: one shape for both."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_agent.inference.evaluation import Evaluation

from .report_data import ReportData
from .summary import advice_for

MAX_CONFUSION_CLASSES = 100
"""Above, the matrix would be most of the file; `confused_pairs` says the same."""
MAX_PAIRS = 50


def figures(story: ReportData) -> dict[str, Any]:
    """What `metrics.json` holds; docs/reference/run.md names every field."""
    found: dict[str, Any] = {"test": scored(story.test)}
    if story.val is not None:
        found["val"] = scored(story.val)
    if story.temperature is not None:
        found["temperature"] = story.temperature
    if story.data_size is not None:
        found["learning_curve"] = [
            {"train_pictures": point.train_images, "accuracy": point.accuracy, "std": point.std}
            for point in story.data_size.points
        ]
        error = 1 - story.test.accuracy
        found["more_pictures"] = [
            {
                "train_pictures": forecast.times * story.data_size.train_images,
                "gain": forecast.avoided * error,
                "interval_90": [forecast.low * error, forecast.high * error],
            }
            for forecast in story.data_size.forecasts
        ]
    found["advice"] = [advice.text for advice in advice_for(story)]
    return found


def scored(evaluation: Evaluation) -> dict[str, Any]:
    """One set of images: shares from 0 to 1, classes by name; docs/reference/run.md names every field."""
    classes = len(evaluation.labels)
    return {
        "pictures": len(evaluation.truth),
        "accuracy": evaluation.accuracy,
        "interval_95": list(evaluation.interval_95),
        "macro_f1": evaluation.macro_f1,
        "top_3_accuracy": evaluation.top_accuracy(3),
        "calibration_error": evaluation.calibration_error(),
        "log_loss": evaluation.log_loss,
        "per_class": evaluation.recall(),
        "precision": evaluation.precision(),
        "support": evaluation.support(),
        "confused_pairs": [list(pair) for pair in evaluation.confused_pairs()[:MAX_PAIRS]],
        "confusion": evaluation.confusion().tolist() if classes <= MAX_CONFUSION_CLASSES else None,
    }


def without_temperature(evaluation: Evaluation, temperature: float) -> Evaluation:
    """The same answers with the scores the model gave before its logits were divided by ``temperature``."""
    # softmax(z) from s = softmax(z / T): z is T ln s, up to what softmax does not see.
    logits = temperature * np.log(np.maximum(evaluation.scores.astype(np.float64), 1e-30))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return Evaluation(evaluation.labels, evaluation.truth, scores)
