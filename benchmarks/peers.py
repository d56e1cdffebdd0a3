"""Compares edgeloop's latency from frame to label with that of other runtimes.

    python -m benchmarks.peers BUNDLE [--peers .venv-peers] [--turns 5]

The other runtimes are MediaPipe Tasks, ONNX Runtime, and OpenCV with LiteRT. All of them run the same int8 network on
photographs of 1280x720 pixels, which are either decoded in advance or given as JPEGs, as from a camera. Each runtime
runs in a separate process, and they take turns. A turn measures the median time per frame; the figures are medians over
all turns. The other runtimes are installed into their own environment if it does not exist yet (see
benchmarks/peers.txt).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import cv2

from edge_agent.bundle import open_bundle
from edge_agent.bundle.archive import MODEL
from edge_agent.cameras.frames import encoded
from edge_agent.inference.interpreter import cores

from .support.figures import record
from .support.inputs import photographs

HERE = Path(__file__).parent
RUNS = 200
BARE, OURS = "LiteRT, invoke alone", "edgeloop"
# Name -> (way of contender.py, whether it runs in the environment of the other runtimes, kind of model).
WAYS = {
    BARE: ("bare", False, "tflite"),
    OURS: ("edgeloop", False, "bundle"),
    "OpenCV resize + LiteRT": ("opencv", True, "tflite"),
    "MediaPipe ImageClassifier": ("mediapipe", True, "tflite"),
    "ONNX Runtime, run alone": ("onnxruntime_bare", True, "onnx"),
    "OpenCV resize + ONNX Runtime": ("onnxruntime", True, "onnx"),
}


def environment(folder: Path) -> Path:
    """Return the Python of the environment of the other runtimes.

    The environment is created if it does not exist, or if peers.txt has changed since it was created.
    """
    python, stamp, requirements = folder / "bin" / "python", folder / "installed", HERE / "peers.txt"
    if not stamp.exists() or stamp.read_text() != requirements.read_text():
        print(f"installing the peers into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", str(requirements)]
        subprocess.run(command, check=True)
        stamp.write_text(requirements.read_text())
    return python


def timed(python: Path, way: str, model: Path, source: Path, threads: int) -> tuple[float, float]:
    """Run one of the ways to classify frames, and return its time and CPU time per frame, in milliseconds."""
    command = [python, "-m", "benchmarks.support.contender", way, model, source, str(threads), str(RUNS)]
    done = subprocess.run(
        [str(part) for part in command], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    wall, cpu = done.stdout.split()[-2:]
    return float(wall), float(cpu)


def compare(models: dict[str, Path], python: Path, source: Path, threads: int, turns: int) -> None:
    # The ways called "alone" run only the network, without a frame, so they are measured for only one of the sources.
    ways = {name: way for name, way in WAYS.items() if source.name == "png" or "alone" not in name}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, (way, peer, kind) in ways.items():
            with_python = python if peer else Path(sys.executable)
            found[name].append(timed(with_python, way, models[kind], source, threads))
    wall = {name: statistics.median(one for one, _ in times) for name, times in found.items()}
    cpu = {name: statistics.median(one for _, one in times) for name, times in found.items()}
    of = f"{'JPEG' if source.name == 'jpeg' else 'decoded'} frame, {threads} thread{'s' if threads > 1 else ''}"
    for name in ways:
        record(f"{of}, {name}", wall[name], "ms")
        record(f"{of}, {name}, CPU", cpu[name], "ms")
    for name in ways:
        if name != OURS:
            aim = 2.0 if WAYS[name][0] == "mediapipe" and source.name == "png" else None
            record(f"{of}, {name} over edgeloop", wall[name] / wall[OURS], at_least=aim)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--peers", type=Path, default=Path(".venv-peers"), help="environment of the other runtimes")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    python = environment(arguments.peers)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        models = {"bundle": arguments.bundle, "tflite": work / "model.tflite", "onnx": work / "model.onnx"}
        models["tflite"].write_bytes(open_bundle(arguments.bundle).read(MODEL))
        command = [python, HERE / "support" / "onnx_network.py", models["tflite"], models["onnx"]]
        subprocess.run([str(part) for part in command], check=True)
        for kind in ("png", "jpeg"):
            (work / kind).mkdir()
        for number, image in enumerate(photographs()):
            cv2.imwrite(str(work / "png" / f"{number}.png"), image)
            (work / "jpeg" / f"{number}.jpg").write_bytes(encoded(image))
        for threads in sorted({1, cores()}):
            for kind in ("png", "jpeg"):
                compare(models, python, work / kind, threads, arguments.turns)


if __name__ == "__main__":
    main()
