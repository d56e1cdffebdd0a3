"""Photographs to a run: a fine-tuned Keras model with the record of how it came about."""

import os

# TensorFlow prints its start-up notes from C++; only the environment, set before the import, quiets them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
