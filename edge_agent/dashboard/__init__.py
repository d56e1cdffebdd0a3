"""Dashboard and Prometheus metrics, which show the agent's messages over HTTP. Needs the extra ``review``."""

from __future__ import annotations

from .dashboard import Dashboard
from .prometheus import Counts

__all__ = ["Counts", "Dashboard"]
