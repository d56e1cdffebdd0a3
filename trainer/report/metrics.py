"""Computes the metrics in `metrics.json` and in the output of `edgeloop evaluate --json`. Both use the same names."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_agent.inference.evaluation import Evaluation

from .report_data import ReportData
from .summary import advice_for

MAX_CONFUSION_CLASSES = 100
"""Maximum number of classes for which the confusion matrix is included.

With more classes, the matrix would be most of the file. `confused_pairs` contains the most frequent pairs.
"""
MAX_PAIRS = 50


def figures(report: ReportData) -> dict[str, Any]:
    """Return the content of `metrics.json`. docs/reference/run.md describes each field."""
    found: dict[str, Any] = {"test": scored(report.test)}
    if report.val is not None:
        found["val"] = scored(report.val)
    if report.temperature is not None:
        found["temperature"] = report.temperature
    if report.data_size is not None:
        found["learning_curve"] = [
            {"train_pictures": point.train_images, "accuracy": point.accuracy, "std": point.std}
            for point in report.data_size.points
        ]
        error = 1 - report.test.accuracy
        found["more_pictures"] = [
            {
                "train_pictures": forecast.times * report.data_size.train_images,
                "gain": forecast.avoided * error,
                "interval_90": [forecast.low * error, forecast.high * error],
            }
            for forecast in report.data_size.forecasts
        ]
    found["advice"] = [advice.text for advice in advice_for(report)]
    return found


def scored(evaluation: Evaluation) -> dict[str, Any]:
    """Return the metrics for a set of images. Shares are from 0 to 1. docs/reference/run.md describes each field."""
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
    """Return the evaluation with the scores that the model would have without temperature scaling.

    Args:
        evaluation: evaluation of the model with temperature scaling.
        temperature: number by which the logits of the model were divided.
    """
    # From s = softmax(z / T) follows z = T ln s, up to a constant that does not change softmax(z).
    logits = temperature * np.log(np.maximum(evaluation.scores.astype(np.float64), 1e-30))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return Evaluation(evaluation.labels, evaluation.truth, scores)
