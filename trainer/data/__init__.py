"""Loads and checks datasets: labelled, split and preprocessed images from files on disk."""

from .cache import default_cache
from .checks import Finding
from .dataset import MAX_UNREADABLE, Dataset, load_dataset
from .label_errors import suspicious_labels
from .photo import SPLITS, Photo
from .pixels import PixelRows
from .sources import data_root, find_photos, images_below

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
    "images_below",
    "load_dataset",
    "suspicious_labels",
]
