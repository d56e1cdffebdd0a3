"""A run to a bundle: int8, measured on the device's own runtime, packed only when nothing was lost."""

import os

# TensorFlow prints its start-up notes from C++; only the environment, set before the import, quiets them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
