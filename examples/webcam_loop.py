"""Classifies the frames of a webcam and prints each new label: python examples/webcam_loop.py birds-3.edgeloop [SOURCE]

SOURCE is anything that OpenCV can open: a camera number (default 0), a video file or a URL. Use this loop as a start
for your own programs. The agent (`edgeloop run`) also reconnects cameras, smooths the scores and publishes with MQTT.
"""

from __future__ import annotations

import sys

import cv2
import numpy as np

import edge_agent


def main() -> None:
    bundle, source = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "0"
    camera = cv2.VideoCapture(int(source) if source.isdecimal() else source)
    if not camera.isOpened():
        sys.exit(f"{source}: no camera or video there; edgeloop cameras lists what this machine has")
    shown = ""
    with edge_agent.open(bundle) as model:
        while True:
            ok, frame = camera.read()  # (height, width, 3) uint8, BGR, as edgeloop expects
            if not ok:
                break
            result = model.classify(np.asarray(frame, np.uint8))
            if result.best.label != shown:
                shown = result.best.label
                print(
                    f"{shown} ({result.best.score:.2f}), {result.preprocess_ms + result.inference_ms:.1f} ms",
                    flush=True,
                )
    camera.release()


if __name__ == "__main__":
    main()
