"""Runs the demo: makes photographs, trains, converts, makes a video, runs the agent on it and prints a summary."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console
from rich.live import Live
from rich.progress import track
from rich.table import Table
from rich.text import Text

from edge_agent.atomic_files import replacing
from edge_agent.errors import ConfigError, EdgeloopError
from edge_agent.mqtt import Topics

from .broker import embedded_broker
from .photographs import SOURCES, load_areas, write_photos
from .subscriber import ReceivedLabels, Watcher
from .video import FRAMES_PER_S, write_video

DEVICE, CAMERA = "demo", "bench"
BUNDLE = "surfaces-1.edgeloop"
_MARKER = ".edgeloop-demo"


class DemoError(EdgeloopError):
    """The agent failed during the demo."""


@dataclass(frozen=True)
class Summary:
    """Results of the demo, as shown in the table at the end."""

    float_accuracy: float
    int8_accuracy: float
    video_accuracy: float
    test_images: int
    frames_classified: int
    frames: int
    float_bytes: int
    int8_bytes: int
    latencies_ms: tuple[float, float, float]
    took_s: float
    bundle: Path


def run_demo(*, keep: Path | None = None, broker: str | None = None, seed: int = 0) -> Summary:
    """Run the whole pipeline and print its progress.

    Args:
        keep: directory in which all files are kept. It is created if missing, and emptied if an earlier demo wrote it.
            If None, only the bundle is kept, in the current directory.
        broker: ``host`` or ``host:port`` of an MQTT 5 broker; if None, an embedded broker is used.
        seed: random seed for images, training and video.

    Raises:
        EdgeloopError: a stage failed; the message says which one and why.
    """
    # Heavy imports, needed only when the demo runs.
    from converter.gate import GateLimits
    from converter.pipeline import convert
    from trainer.pipeline import Reading, train
    from trainer.training.recipe import Recipe

    started = time.monotonic()
    console = Console()
    host, port = _parse_broker(broker)
    if keep is None and not os.access(Path.cwd(), os.W_OK):
        raise ConfigError(
            f"{Path.cwd()}: cannot write the bundle there; run the demo in another directory or give one with --keep"
        )
    if host is not None:
        with console.status("Connecting to the broker"), Watcher(host, port, Topics("edgeloop", DEVICE), CAMERA):
            pass  # fail now rather than after two minutes of work
    with ExitStack() as cleanup:
        folder = cleanup.enter_context(_workplace(keep))

        _headline(
            console,
            1,
            "Photographs",
            f"{len(SOURCES)} of scikit-image: {', '.join(f'{s.label} ({s.credit})' for s in SOURCES)}",
        )
        areas = load_areas()
        write_photos(
            folder / "photos", areas, seed=seed, progress=lambda jobs: track(jobs, "Photographing", console=console)
        )

        _headline(console, 2, "Train", "a head on EfficientNet-Lite0, pretrained on ImageNet")
        recipe, reading = Recipe(fine_tune="none", seed=seed), Reading(cache=folder / "cache")
        run = train(folder / "photos", folder / "run", recipe, console=console, reading=reading)

        _headline(console, 3, "Convert", "to int8, evaluate on the test images, pack if accuracy is kept")
        # The demo shows the loop on any machine. Where int8 is slower than float, it says so and goes on.
        limits = GateLimits(allowed=frozenset({"slow"}))
        converted = convert(run.path, folder / BUNDLE, limits=limits, console=console)
        bundle = folder / BUNDLE if keep else _copy_here(folder / BUNDLE)
        console.print(f"{bundle.name}: {bundle.stat().st_size / 1e6:.2f} MB, digest {converted.digest[:12]}")

        _headline(console, 4, "Video", "of areas not used for training, with movement, blur and changing light")
        truth = write_video(
            folder / "video.avi",
            areas,
            seed=seed,
            progress=lambda n, total: track(n, "Filming", total=total, console=console),
        )

        _headline(
            console,
            5,
            "Run the agent",
            f"on the video, {len(truth) / FRAMES_PER_S:.0f} s in real time, labels over MQTT",
        )
        if host is None:
            with console.status("Starting the broker"):
                host, port = "127.0.0.1", cleanup.enter_context(embedded_broker(folder))
        received = _run_agent(folder, bundle, host, port, truth, console)

    summary = Summary(
        float_accuracy=converted.verdict.float32.accuracy,
        int8_accuracy=converted.verdict.model.accuracy,
        video_accuracy=received.accuracy(truth),
        test_images=len(converted.verdict.model.truth),
        frames_classified=len(received.results),
        frames=len(truth),
        float_bytes=converted.float_bytes,
        int8_bytes=converted.model_bytes,
        latencies_ms=received.latencies_ms(),
        took_s=time.monotonic() - started,
        bundle=bundle,
    )
    console.print()
    console.print(_table(summary))
    console.print(f"Try it: edgeloop inspect {bundle}", highlight=False, soft_wrap=True)
    return summary


def _run_agent(folder: Path, bundle: Path, host: str, port: int, truth: list[str], console: Console) -> ReceivedLabels:
    """Run `edgeloop run` in a separate process and collect its messages over MQTT until the video ends."""
    settings = {
        "device": DEVICE,
        "bundle": str(bundle.resolve()),
        "cameras": {CAMERA: {"source": "video.avi"}},
        "mqtt": {"host": host, "port": port, "results": True},
        "state": "state",
    }
    (folder / "agent.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "edge_agent.cli", "run", "--config", str(folder / "agent.yaml")]
    with Watcher(host, port, Topics("edgeloop", DEVICE), CAMERA) as watcher, (folder / "agent.log").open("w+b") as log:
        agent = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            with Live(console=console, refresh_per_second=10, transient=not console.is_terminal) as live:
                while agent.poll() is None:
                    live.update(_live_line(watcher.received, truth))
                    time.sleep(0.1)
                # Wait for the last messages and the offline status to pass through the broker.
                deadline = time.monotonic() + 3
                while watcher.received.status != "offline" and time.monotonic() < deadline:
                    time.sleep(0.05)
                live.update(_live_line(watcher.received, truth))
        finally:
            if agent.poll() is None:
                agent.send_signal(signal.SIGTERM)
                agent.wait(10)
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
    if agent.returncode != 0 or not watcher.received.results:
        last = lines[-1] if lines else "its log is empty"
        raise DemoError(
            f"the agent exited with status {agent.returncode} after {len(watcher.received.results)} results: {last}"
        )
    if not console.is_terminal:
        for label in watcher.received.labels:
            console.print(f"{CAMERA}: frame {label.seq}, {label.label} {label.score:.2f}", highlight=False)
    return watcher.received


def _live_line(received: ReceivedLabels, truth: list[str]) -> Text:
    """Return the line that shows the state of the camera.

    It contains the decided label, the result and the age of the last frame, and the accuracy so far.
    """
    if not received.results:
        return Text(f"{CAMERA}: waiting for the first label")
    result = received.results[-1]
    decided = received.labels[-1].label if received.labels else "unknown"
    line = Text(f"{CAMERA}: ")
    line.append(f"{decided:<8}", style="bold green" if decided == truth[result.seq] else "bold yellow")
    line.append(
        f" frame {result.seq + 1:>3}/{len(truth)}: {result.label} {result.score:.2f}, "
        f"age {result.timing_ms.capture_to_publish:.1f} ms, {100 * received.accuracy(truth):.1f} % correct"
    )
    return line


def _table(summary: Summary) -> Table:
    table = Table(title="Summary", title_justify="left", show_header=False)
    p50, p95, p99 = summary.latencies_ms
    percent = f"{100 * summary.video_accuracy:.1f} %"
    for name, value in (
        ("accuracy, float", f"{100 * summary.float_accuracy:.1f} % of {summary.test_images} test images"),
        ("accuracy, int8", f"{100 * summary.int8_accuracy:.1f} % of the same images"),
        (
            "accuracy, video",
            f"{percent} of {summary.frames_classified} classified frames ({summary.frames} in the video)",
        ),
        ("size", f"{summary.int8_bytes / 1e6:.2f} MB int8, {summary.float_bytes / 1e6:.2f} MB float"),
        ("latency", f"p50 {p50:.1f} ms, p95 {p95:.1f} ms, p99 {p99:.1f} ms (preprocess and inference)"),
        ("took", f"{summary.took_s:.0f} s"),
        ("bundle", str(summary.bundle)),
    ):
        table.add_row(name, value)
    return table


def _headline(console: Console, number: int, verb: str, what: str) -> None:
    console.print(f"\n[bold]{number}. {verb}[/bold] {what}", highlight=False)


def _parse_broker(broker: str | None) -> tuple[str | None, int]:
    if broker is None:
        return None, 0
    host, _, port = broker.partition(":")
    if not host or not (port or "1883").isdecimal() or not 1 <= int(port or 1883) <= 65535:
        raise ConfigError(f"--broker {broker!r}: expected HOST or HOST:PORT, such as localhost:1883")
    return host, int(port or 1883)


@contextmanager
def _workplace(keep: Path | None) -> Iterator[Path]:
    """Yield the working directory: a temporary one, or `keep`, which must be empty or written by an earlier demo."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="edgeloop-demo-") as scratch:
            yield Path(scratch)
        return
    if keep.exists() and any(keep.iterdir()):
        if not (keep / _MARKER).exists():
            raise ConfigError(f"{keep}: contains files that no demo wrote; give an empty or new directory")
        shutil.rmtree(keep)
    keep.mkdir(parents=True, exist_ok=True)
    (keep / _MARKER).touch()
    yield keep


def _copy_here(bundle: Path) -> Path:
    target = Path.cwd() / bundle.name
    with replacing(target) as file, bundle.open("rb") as source:
        shutil.copyfileobj(source, file)
    return target
