"""Compares throughput, latency and cost of the agent with the bare interpreter.

    python -m benchmarks.agent BUNDLE [--seconds 10] [--frames 200000]

The frames are photographs of 1280x720 pixels, and the broker is a real Mosquitto on loopback. Throughput and latency
are given as ratios to a bare `invoke`, which is measured in the same run, directly before the agent or directly before
and after it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from edge_agent.agent.loaded_model import LoadedModel
from edge_agent.agent.pipeline import Agent, Source
from edge_agent.bundle import open_bundle
from edge_agent.cameras import ArrayFrame, ListCamera
from edge_agent.cameras.frames import encoded
from edge_agent.cameras.jpeg import JpegFrame
from edge_agent.config import CameraSettings, MotionSettings, MqttSettings
from edge_agent.inference.classifier import Classifier, Result
from edge_agent.inference.decision import Rules
from edge_agent.monitoring.system import resident_mb
from edge_agent.mqtt import MqttPublisher
from edge_agent.preprocessing import preprocess
from edge_agent.publishers import RecordingPublisher

from .support.figures import record
from .support.inputs import photographs

RULES = Rules(0.6, 0.4, 0.3, 0.5)
RECEIVER = """
import sys, time, json, paho.mqtt.client as paho
client = paho.Client(paho.CallbackAPIVersion.VERSION2)
def take(_client, _data, message):
    now = time.time_ns()
    print(json.loads(message.payload)["seq"], now, flush=True)
client.on_message = take
client.on_subscribe = lambda *_: print("ready", flush=True)
client.connect("127.0.0.1", int(sys.argv[1]))
client.subscribe("edgeloop/bench/camera/+/result")
client.loop_forever()
"""
USB = """
import sys, time, cv2
from itertools import islice
from pathlib import Path
from edge_agent.bundle import open_bundle
from edge_agent.cameras.sources import open_camera
from edge_agent.config import CameraSettings
from edge_agent.preprocessing import preprocess
from edge_agent.cameras.region import view
spec = open_bundle(Path(sys.argv[2])).manifest.preprocess
def ours():
    with open_camera(CameraSettings(42, size=(1280, 720))) as camera:
        for frame in islice(camera, 130):
            preprocess(view(frame, spec), spec)
            yield
def theirs():
    capture = cv2.VideoCapture(42, cv2.CAP_V4L2)
    capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
    capture.set(cv2.CAP_PROP_FRAME_WIDTH, 1280)
    capture.set(cv2.CAP_PROP_FRAME_HEIGHT, 720)
    for _ in range(130):
        cv2.resize(capture.read()[1], (spec.size[1], spec.size[0]))
        yield
for number, _ in enumerate({"ours": ours, "theirs": theirs}[sys.argv[1]]()):
    if number == 29:
        start = time.process_time()
print(1000 * (time.process_time() - start) / 100)
"""


def load(bundle: Path, threads: int) -> LoadedModel:
    opened = open_bundle(bundle)
    return LoadedModel(opened, Classifier.from_bundle(opened, threads=threads), RULES)


def bare_ms(model: LoadedModel, runs: int = 200) -> float:
    """Return the median latency of `invoke` alone, in milliseconds."""
    levels = preprocess(photographs()[0], model.classifier.spec)
    times = [model.classifier.infer(levels)[1] for _ in range(runs + 20)]
    return statistics.median(times[20:])


@contextmanager
def receiving(port: int) -> Iterator[list[str]]:
    """Receive results in another process, and yield the list of the lines that this process prints.

    Each line contains the sequence number of a result and the time in nanoseconds at which it arrived. A thread adds
    new lines to the list until the context exits.
    """
    command = [sys.executable, "-c", RECEIVER, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as receiver:
        assert receiver.stdout is not None
        receiver.stdout.readline()
        lines: list[str] = []
        reader = threading.Thread(target=lines.extend, args=(receiver.stdout,))
        reader.start()
        yield lines
        receiver.terminate()
        reader.join()


@contextmanager
def broker() -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as config:
        config.write(f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\n")
        config.flush()
        program = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin") or "mosquitto"
        process = subprocess.Popen([program, "-c", config.name], stderr=subprocess.DEVNULL)
        try:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    time.sleep(0.05)
            yield port
        finally:
            process.terminate()
            process.wait()


def sustained(bundle: Path, threads: int, seconds: float) -> None:
    with broker() as port, receiving(port) as received:
        model = load(bundle, threads)
        before = bare_ms(model)
        frames = itertools.cycle(photographs())
        settings = MqttSettings(host="127.0.0.1", port=port, results=True)
        camera = Source(lambda: ListCamera(frames, interval_s=0.6 * before / 1000))
        with MqttPublisher(settings, "bench") as publisher:
            time.sleep(1)
            with Agent("bench", model, {"a": camera}, publisher) as agent:
                agent.wait(1)
                start, count = time.perf_counter(), agent.counts["a"].classified
                agent.wait(seconds)
                rate = (agent.counts["a"].classified - count) / (time.perf_counter() - start)
                within = agent.latencies.inference.take().p50
            time.sleep(0.5)
            after = bare_ms(load(bundle, threads))
    bare = 1000 / statistics.mean((before, after))
    aim = 0.95 if threads == 1 else None
    record(f"sustained rate over bare invoke, {threads} inference thread(s)", rate / bare, at_least=aim)
    print(
        f"  {rate:.0f} frames/s; bare invoke {1000 / bare:.2f} ms, {within:.2f} within the agent; "
        f"{len(received)} of {agent.counts['a'].classified} results received, {publisher.skipped} skipped"
    )


def around(bundle: Path) -> None:
    model = load(bundle, 1)
    bare = bare_ms(model)
    frames = [ArrayFrame(image=image, seq=seq) for seq, image in enumerate(photographs())]
    scores, _ = model.classifier.infer(preprocess(frames[0].image, model.classifier.spec))
    with broker() as port, MqttPublisher(MqttSettings(host="127.0.0.1", port=port, results=True), "bench") as publisher:
        time.sleep(1)
        agent = Agent("bench", model, {"a": Source(lambda: ListCamera([]))}, publisher)
        times, cpu = [], time.process_time()
        runs = 1000
        for number in range(runs):
            frame = ArrayFrame(image=frames[number % len(frames)].image, seq=number)
            start = time.perf_counter()
            prepared = agent._prepared("a", frame)
            assert prepared is not None
            result = Result(model.classifier.labels, scores, prepared.preprocess_ms, bare)
            agent._observe(model, "a", frame, result)
            times.append(1000 * (time.perf_counter() - start))
            time.sleep(0.003)  # in place of invoke, so that the network thread can run
        cpu = 1000 * (time.process_time() - cpu) / runs
    record("overhead around invoke per frame", statistics.median(times), "ms", at_most=0.6)
    record("overhead around invoke per frame, CPU including the network thread", cpu, "ms")


def latency(bundle: Path, seconds: float) -> None:
    with broker() as port, receiving(port) as received:
        model = load(bundle, 1)
        bare = bare_ms(model)
        captured: dict[int, int] = {}

        class RecordingCamera(ListCamera):
            def __iter__(self) -> Iterator[ArrayFrame]:
                for seq, image in enumerate(itertools.cycle(photographs())):
                    frame = ArrayFrame(image=image, seq=seq)
                    captured[seq] = frame.captured_ns
                    yield frame
                    time.sleep(4 * bare / 1000)

        settings = MqttSettings(host="127.0.0.1", port=port, results=True)
        with MqttPublisher(settings, "bench") as publisher:
            time.sleep(1)
            with Agent("bench", model, {"a": Source(lambda: RecordingCamera([]))}, publisher) as agent:
                agent.wait(seconds)
            time.sleep(0.5)
    ages = [(int(at) - captured[int(seq)]) / 1e6 for seq, at in map(str.split, received)][10:]
    p50, p99 = np.percentile(ages, (50, 99))
    record("capture to receipt by another process, p50 over bare invoke", p50 / bare, at_most=1.3)
    record("capture to receipt by another process, p99 over bare invoke", p99 / bare, at_most=2.5)
    print(f"  {len(ages)} frames: p50 {p50:.2f} ms, p99 {p99:.2f} ms; bare invoke {bare:.2f} ms")


def mjpeg(bundle: Path, quality: int) -> None:
    """Measure the CPU time per frame of a USB camera with 720p MJPEG frames of this JPEG quality.

    The camera is simulated: the shim of the tests replaces the kernel's video driver.
    """
    # USB cameras use a lower colour resolution only horizontally (4:2:2).
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    ]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(__file__).parent.parent / "tests" / "support" / "camera_shim.c"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", f"{folder}/shim.so", source, "-ldl"], check=True)
        files = [f"{folder}/{number}.jpg" for number, _ in enumerate(photographs())]
        for file, image in zip(files, photographs(), strict=True):
            cv2.imwrite(file, image, options)
        kilobytes = statistics.mean(Path(file).stat().st_size for file in files) / 1000
        camera = {"LD_PRELOAD": f"{folder}/shim.so", "SHIM_MODE": "mjpg", "SHIM_FRAMES": ":".join(files)}
        environment = {**os.environ, **camera}
        cpu: dict[str, list[float]] = {"ours": [], "theirs": []}
        for which in ("ours", "theirs") * 3:
            command = [sys.executable, "-c", USB, which, str(bundle)]
            output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            cpu[which].append(float(output))
        floor = statistics.mean(entropy_ms(Path(file).read_bytes()) for file in files)
    one, other = statistics.median(cpu["ours"]), statistics.median(cpu["theirs"])
    record(f"720p MJPEG of {kilobytes:.0f} KB, USB, CPU over read() and resize", one / other, at_most=0.5)
    print(f"  {one:.2f} ms, read() and resize {other:.2f} ms; Huffman decoding alone takes {floor:.2f} ms")


def entropy_ms(data: bytes) -> float:
    """Return the CPU time, in milliseconds, of the least work that any decoder of this JPEG has to do.

    This is Huffman decoding and one grey level per 64 pixels.
    """
    coded = np.frombuffer(data, np.uint8)
    start = time.process_time()
    for _ in range(100):
        cv2.imdecode(coded, cv2.IMREAD_REDUCED_GRAYSCALE_8)
    return 10 * (time.process_time() - start)


def cold_start(bundle: Path) -> None:
    times, sizes = [], []
    for _ in range(5):
        with broker() as port, tempfile.TemporaryDirectory() as folder:
            cv2.imwrite(f"{folder}/a.png", photographs()[0])
            (Path(folder) / "agent.yaml").write_text(
                f"device: bench\nbundle: {bundle.resolve()}\nstate: {folder}/state\n"
                f"mqtt: {{host: 127.0.0.1, port: {port}}}\n"
                f"cameras: {{a: {{source: {folder}, fps: 30, loop: true}}}}\n"
            )
            topic = [
                "mosquitto_sub",
                "-h",
                "127.0.0.1",
                "-p",
                str(port),
                "-t",
                "edgeloop/bench/camera/a/label",
                "-C",
                "1",
            ]
            with subprocess.Popen(topic, stdout=subprocess.PIPE) as label:
                assert label.stdout is not None
                time.sleep(0.3)
                command = [sys.executable, "-m", "edge_agent.cli", "run", "--config", f"{folder}/agent.yaml"]
                start = time.perf_counter()
                with subprocess.Popen(command, stderr=subprocess.DEVNULL) as agent:
                    json.loads(label.stdout.readline())
                    times.append(time.perf_counter() - start)
                    time.sleep(1)
                    text = Path(f"/proc/{agent.pid}/status").read_text()
                    sizes.append(int(text.split("VmRSS:")[1].split()[0]) / 1000)
                    agent.terminate()
    record("cold start to the first label", statistics.median(times), "s", at_most=1.5)
    record("resident memory", statistics.median(sizes), "MB", at_most=120)


def growth(bundle: Path, frames: int) -> None:
    model = load(bundle, 1)
    images = itertools.cycle(photographs())
    sizes: list[float] = []
    camera = Source(lambda: ListCamera(images, interval_s=0.0005))

    class DiscardingPublisher(RecordingPublisher):
        def result(self, observation: object) -> None:
            pass

        def label(self, observation: object) -> None:
            pass

        def event(self, observation: object) -> None:
            pass

    with Agent("bench", model, {"a": camera}, DiscardingPublisher()) as agent:
        for tenth in range(1, 11):
            while agent.counts["a"].classified < tenth * frames / 10:
                agent.wait(0.2)
            sizes.append(resident_mb() or 0)
    record(f"memory during {frames} frames, last tenth over first tenth", sizes[-1] / sizes[0], at_most=1.01)
    print(f"  by tenths: {' '.join(f'{size:.1f}' for size in sizes)} MB")


def motion(bundle: Path, seconds: float) -> None:
    rng = np.random.default_rng(0)
    still = photographs()[0]
    noisy = [np.clip(still + rng.integers(-4, 5, still.shape), 0, 255).astype(np.uint8) for _ in range(8)]
    jpegs = [encoded(image) for image in noisy]

    class Camera(ListCamera):
        def __iter__(self) -> Iterator[JpegFrame]:
            for seq in itertools.count():
                yield JpegFrame(data=jpegs[seq % len(jpegs)], seq=seq)
                time.sleep(1 / 30)

    cpu = {}
    for name, gate in (("all", None), ("gate", MotionSettings())):
        source = Source(lambda: Camera([]), settings=CameraSettings("x", motion=gate))
        with Agent("bench", load(bundle, 1), {"a": source}, RecordingPublisher(wants_results=False)) as agent:
            agent.wait(4)
            start = time.process_time()
            agent.wait(seconds)
            cpu[name] = (time.process_time() - start) / seconds
    record("CPU on a still scene, motion gate over classifying everything", cpu["gate"] / cpu["all"], at_most=0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--frames", type=int, default=0, help="frames of the memory growth test; 0 skips it")
    arguments = parser.parse_args()
    for threads in (1, 2):
        sustained(arguments.bundle, threads, arguments.seconds)
    around(arguments.bundle)
    latency(arguments.bundle, arguments.seconds)
    for quality in (95, 80, 60):
        mjpeg(arguments.bundle, quality)
    cold_start(arguments.bundle)
    motion(arguments.bundle, arguments.seconds)
    if arguments.frames:
        growth(arguments.bundle, arguments.frames)


if __name__ == "__main__":
    main()
