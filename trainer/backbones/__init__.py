"""The networks a classifier is built on."""

from .build import build_backbone
from .hub import write_saved_model
from .networks import Backbone
from .table import BACKBONES, find_backbone

__all__ = ["BACKBONES", "Backbone", "build_backbone", "find_backbone", "write_saved_model"]
