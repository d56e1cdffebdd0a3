"""Runs an exported SavedModel on images. This is a standalone script: it imports nothing from edgeloop.

    python answer.py FOLDER IMAGE...

prints one JSON object per image with the keys `labels` and `scores`, both sorted by score, highest first.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def main(arguments: list[str]) -> None:
    """Load the SavedModel and print the labels and scores of each JPEG file."""
    import tensorflow as tf

    folder, *images = arguments
    answer = tf.saved_model.load(folder).signatures["serving_default"]
    for path in images:
        found = answer(image_bytes=tf.constant([Path(path).read_bytes()]))
        labels = [label.decode() for label in found["labels"].numpy()[0]]
        print(json.dumps({"labels": labels, "scores": found["scores"].numpy()[0].tolist()}))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
