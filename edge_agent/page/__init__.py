"""The live page and Prometheus' metrics: what the agent publishes, over HTTP. Needs the extra ``review``."""

from __future__ import annotations

from .metrics import Counts
from .page import Page

__all__ = ["Counts", "Page"]
