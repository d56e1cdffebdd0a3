"""What a training came to, for people."""

from .page import wilson_interval, write_report

__all__ = ["wilson_interval", "write_report"]
