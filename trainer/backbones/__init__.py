"""The networks a classifier is built on."""

from .table import BACKBONES, Backbone

__all__ = ["BACKBONES", "Backbone"]
