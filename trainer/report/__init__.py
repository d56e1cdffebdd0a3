"""Writes the results of a training run or an evaluation: `report.html` for people, `metrics.json` for programs."""

from .metrics import figures, scored
from .page import write_report
from .report_data import ReportData

__all__ = ["ReportData", "figures", "scored", "write_report"]
