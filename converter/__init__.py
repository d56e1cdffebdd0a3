"""Converts a training run to a bundle: quantized to int8, evaluated with the device's runtime, packed if it passes."""

import os

# TensorFlow logs its startup messages from C++; only this variable, set before the import, silences them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
