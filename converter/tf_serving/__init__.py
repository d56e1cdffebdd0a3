"""Exports a run as a SavedModel for TensorFlow Serving."""

from .export import export_saved_model

__all__ = ["export_saved_model"]
