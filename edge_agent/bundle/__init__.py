"""Bundles: one file with a model, its labels and its measured accuracy."""

from __future__ import annotations

from .archive import Bundle, open_bundle, write_bundle

__all__ = ["Bundle", "open_bundle", "write_bundle"]
