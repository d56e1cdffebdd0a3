"""Bundles: one file with a model, its labels and what it was measured to do."""

from __future__ import annotations

from .archive import Bundle, open_bundle, write_bundle

__all__ = ["Bundle", "open_bundle", "write_bundle"]
