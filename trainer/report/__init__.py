"""What a training came to, for people and for programs."""

from .figures import figures, scored
from .page import write_report
from .story import Story

__all__ = ["Story", "figures", "scored", "write_report"]
