"""Photographs on disk to labelled, split and preprocessed pictures."""

from .dataset import SPLITS, Dataset, Photo, find_photos, load_dataset, split_photos

__all__ = ["SPLITS", "Dataset", "Photo", "find_photos", "load_dataset", "split_photos"]
