"""What several tests share, and programs that they start."""

from pathlib import Path

SUPPORT = Path(__file__).parent
