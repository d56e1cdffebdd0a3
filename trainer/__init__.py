"""Trains a classifier on labelled images.

The result is a run: a directory with a fine-tuned Keras model and a record of its training. The public names are
imported when they are first used::

    import trainer

    trained = trainer.train("birds/", "runs/birds", on_progress=print)
    print(trained.test_accuracy)
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_agent.progress_lines import Progress

    from .evaluation import Evaluated, evaluate
    from .pipeline import Reading, TrainedRun, train
    from .training.recipe import Recipe

# TensorFlow prints start-up messages from C++; only this variable, set before the import, turns them off.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

__all__ = ["Evaluated", "Progress", "Reading", "Recipe", "TrainedRun", "evaluate", "train"]

_HOME = {
    "Evaluated": "trainer.evaluation",
    "Progress": "edge_agent.progress_lines",
    "Reading": "trainer.pipeline",
    "Recipe": "trainer.training.recipe",
    "TrainedRun": "trainer.pipeline",
    "evaluate": "trainer.evaluation",
    "train": "trainer.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'trainer' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value
