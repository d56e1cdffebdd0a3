"""Measures one way of classifying frames: `contender.py WAY MODEL SOURCE THREADS RUNS`.

benchmarks/peers.py starts it in a separate process, with the Python that has the packages for this way. Prints the
median time and the mean CPU time per frame, in milliseconds. SOURCE is a folder of images: PNG files are decoded before
the measurement; JPEG files stand for frames of a camera, and decoding them is part of the measurement.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SIDE = 224
WARM_UP = 50
Image = Any  # uint8, height x width x BGR
Classify = Callable[[Image], object]


def bare(model: Path, threads: int) -> Classify:
    """Only the network, without input."""
    interpreter = litert(model, threads)
    return lambda _frame: interpreter.invoke()


def edgeloop(model: Path, threads: int) -> Classify:
    """The agent's classification of a frame; MODEL is a bundle."""
    from edge_agent.bundle import open_bundle
    from edge_agent.inference.classifier import Classifier

    classifier = Classifier.from_bundle(open_bundle(model), threads=threads)
    return classifier.classify


def opencv(model: Path, threads: int) -> Classify:
    """Resize with OpenCV, then LiteRT, as in the examples for Raspberry Pi."""
    interpreter = litert(model, threads)
    pixels, scores = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def classify(frame: Image) -> int:
        interpreter.set_tensor(pixels, resized(frame))
        interpreter.invoke()
        return int(np.argmax(interpreter.get_tensor(scores)))

    return classify


def onnxruntime(model: Path, threads: int) -> Classify:
    """Resize with OpenCV, then ONNX Runtime; MODEL is the network converted by benchmarks/support/onnx_network.py."""
    session = onnx_session(model, threads)
    name = session.get_inputs()[0].name
    return lambda frame: int(np.argmax(session.run(None, {name: resized(frame)})[0]))


def onnxruntime_bare(model: Path, threads: int) -> Classify:
    """Only the network, with ONNX Runtime."""
    session = onnx_session(model, threads)
    inputs = {session.get_inputs()[0].name: np.zeros((1, SIDE, SIDE, 3), np.uint8)}
    return lambda _frame: session.run(None, inputs)


def mediapipe(model: Path, _threads: int) -> Classify:
    """MediaPipe Tasks, whose number of threads cannot be set."""
    import mediapipe as mp
    from mediapipe.tasks.python import BaseOptions, vision

    options = vision.ImageClassifierOptions(base_options=BaseOptions(model_asset_path=str(model)), max_results=1)
    classifier = vision.ImageClassifier.create_from_options(options)

    def classify(frame: Image) -> object:
        image = mp.Image(image_format=mp.ImageFormat.SRGB, data=cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
        return classifier.classify(image)

    return classify


def resized(frame: Image) -> Image:
    """Return the frame as (1, 224, 224, 3) uint8 RGB."""
    return cv2.cvtColor(cv2.resize(frame, (SIDE, SIDE)), cv2.COLOR_BGR2RGB)[np.newaxis]


def litert(model: Path, threads: int) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(model), num_threads=threads)
    interpreter.allocate_tensors()
    return interpreter


def onnx_session(model: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


WAYS: dict[str, Callable[[Path, int], Classify]] = {
    way.__name__: way for way in (bare, edgeloop, opencv, onnxruntime, onnxruntime_bare, mediapipe)
}


def opened(source: Path, way: str) -> Iterator[Callable[[], Image]]:
    """Yield endlessly functions that return a frame: decoded in advance from PNG files, or decoded then from JPEGs."""
    images = [cv2.imread(str(path)) for path in sorted(source.glob("*.png"))]
    jpegs = [path.read_bytes() for path in sorted(source.glob("*.jpg"))]
    spec = None
    if way == "edgeloop":
        from edge_agent.preprocessing import PreprocessSpec

        spec = PreprocessSpec((SIDE, SIDE), "letterbox")
    ways = [partial(decoded, data, spec) for data in jpegs]
    return itertools.cycle([*ways, *(partial(unchanged, image) for image in images)])


def decoded(data: bytes, spec: Any) -> Image:
    """Decode a JPEG as the agent does, no larger than the network needs; without ``spec`` at full size."""
    if spec is None:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    from edge_agent.cameras.jpeg import JpegFrame
    from edge_agent.cameras.region import view

    return view(JpegFrame(data=data, seq=0), spec)


def unchanged(image: Image) -> Image:
    return image


def main() -> None:
    way, model, source, threads, runs = sys.argv[1:]
    cv2.setNumThreads(int(threads))
    classify, camera = WAYS[way](Path(model), int(threads)), opened(Path(source), way)
    for _ in range(WARM_UP):
        classify(next(camera)())
    times, cpu = [], time.process_time()
    for _ in range(int(runs)):
        start = time.perf_counter()
        classify(next(camera)())
        times.append(time.perf_counter() - start)
    cpu = time.process_time() - cpu
    print(1000 * statistics.median(times), 1000 * cpu / len(times))


if __name__ == "__main__":
    main()
