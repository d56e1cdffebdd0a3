"""Trains a classifier: labelled images to a run, a fine-tuned Keras model with a record of its training."""

import os

# TensorFlow prints start-up messages from C++; only this variable, set before the import, turns them off.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
