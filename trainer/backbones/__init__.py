"""Provides the backbones, which are the pretrained networks that classifiers are built on."""

from .backbone import Backbone
from .build import build_backbone
from .hub import write_saved_model
from .registry import BACKBONES, find_backbone

__all__ = ["BACKBONES", "Backbone", "build_backbone", "find_backbone", "write_saved_model"]
