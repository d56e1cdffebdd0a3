"""A run as a SavedModel that TensorFlow Serving answers images with."""

from .export import export_saved_model

__all__ = ["export_saved_model"]
