"""Photographs on disk to labelled, split and preprocessed pictures."""

from .cache import default_cache
from .dataset import MAX_UNREADABLE, Dataset, load_dataset
from .findings import Finding
from .labels import suspicious_labels
from .photos import SPLITS, Photo, data_root, find_photos, pictures_below
from .pixels import PixelRows

__all__ = [
    "MAX_UNREADABLE",
    "SPLITS",
    "Dataset",
    "Finding",
    "Photo",
    "PixelRows",
    "data_root",
    "default_cache",
    "find_photos",
    "load_dataset",
    "pictures_below",
    "suspicious_labels",
]
