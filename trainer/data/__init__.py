"""Photographs on disk to labelled, split and preprocessed pictures."""

from .dataset import MAX_UNREADABLE, Dataset, load_dataset
from .findings import Finding
from .labels import suspicious_labels
from .photos import SPLITS, Photo, data_root, find_photos
from .pixels import PixelRows

__all__ = [
    "MAX_UNREADABLE",
    "SPLITS",
    "Dataset",
    "Finding",
    "Photo",
    "PixelRows",
    "data_root",
    "find_photos",
    "load_dataset",
    "suspicious_labels",
]
