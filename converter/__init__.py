"""Converts a training run to a bundle.

Quantizes the model to int8, evaluates it with the runtime that the devices use, and packs it if it passes the checks.
The public names of the package are loaded when they are first used::

    import converter

    converted = converter.convert("runs/birds", "birds-1.edgeloop", on_progress=print)
    print(converted.verdict.drop)
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_agent.errors import GateError
    from edge_agent.progress_lines import Progress

    from .gate import GateLimits, Refusal, Verdict
    from .pipeline import Converted, GateOutcome, convert

# TensorFlow logs its startup messages from C++; only this variable, set before the import, silences them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

__all__ = ["Converted", "GateError", "GateLimits", "GateOutcome", "Progress", "Refusal", "Verdict", "convert"]

_HOME = {
    "Converted": "converter.pipeline",
    "GateError": "edge_agent.errors",
    "GateLimits": "converter.gate",
    "GateOutcome": "converter.pipeline",
    "Progress": "edge_agent.progress_lines",
    "Refusal": "converter.gate",
    "Verdict": "converter.gate",
    "convert": "converter.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'converter' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value
