"""Records the images of web pages for the documentation: images/dashboard.webp and images/review.png.

    edgeloop demo --keep ~/edgeloop-demo
    python -m docs.record_pages ~/edgeloop-demo

The agent classifies the demo's video and records frames. Then the review page shows these frames. The program needs the
development environment (make env-dev) and Chromium. Run it from the root of the repository.
"""

from __future__ import annotations

import base64
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from PIL import Image

from deploy.pipelines.demo.broker import embedded_broker
from tests.conftest import find_free_port, listens, wait_until
from tests.support.browser import Browser

IMAGES = Path(__file__).parent / "images"
PAGE_WIDTH, PAGE_HEIGHT = 1000, 740
"""Width and height of the recorded part of a page, in pixels. This is the upper part of the page."""
SHOWN_WIDTH = 800
FRAMES, PER_SECOND = 30, 3
WARM_UP_S = 40.0
"""Seconds to wait before the recording, so that the charts have data and the agent has recorded frames."""
START_S = 60.0
"""Maximum seconds until a command serves its page. The command for the review page loads a network first."""


def main() -> None:
    demo = Path(sys.argv[1]).expanduser().resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Browser(folder / "profile") as browser:
            browser.send(
                "Emulation.setDeviceMetricsOverride",
                width=PAGE_WIDTH,
                height=PAGE_HEIGHT,
                deviceScaleFactor=1,
                mobile=False,
            )
            record_dashboard(browser, demo, folder)
            record_review(browser, demo, folder / "state" / "captures")


def record_dashboard(browser: Browser, demo: Path, folder: Path) -> None:
    """Record images/dashboard.webp. The agent writes the frames that it records to ``folder``/state/captures."""
    port = find_free_port()
    with embedded_broker(folder) as broker_port:
        settings = {
            "device": "bench-pi",
            "bundle": str(next(demo.rglob("*.edgeloop"))),
            "cameras": {"bench": {"source": str(next(demo.rglob("*.avi"))), "loop": True}},
            "mqtt": {"host": "127.0.0.1", "port": broker_port},
            "dashboard": {"port": port},
            "record": {"per_hour": 3600, "random_every_s": 1},
            "state": str(folder / "state"),
        }
        (folder / "agent.yaml").write_text(yaml.safe_dump(settings))
        with serving("run", "--config", folder / "agent.yaml", port=port):
            browser.open(f"http://127.0.0.1:{port}/")
            time.sleep(WARM_UP_S)
            frames = [screenshot(browser) for _ in range(FRAMES)]
    size = SHOWN_WIDTH, round(PAGE_HEIGHT * SHOWN_WIDTH / PAGE_WIDTH)
    first, *others = (frame.resize(size, Image.Resampling.LANCZOS) for frame in frames)
    path = IMAGES / "dashboard.webp"
    first.save(path, save_all=True, append_images=others, duration=1000 // PER_SECOND, loop=0, quality=60)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def record_review(browser: Browser, demo: Path, captures: Path) -> None:
    """Record images/review.png, which shows the review page after five suggested labels have been accepted."""
    port = find_free_port()
    with serving("review", captures, "--run", demo / "run", "--port", port, "--no-open", port=port):
        browser.open(f"http://127.0.0.1:{port}/")
        wait_until(lambda: bool(browser.evaluate("document.querySelectorAll('#frames li').length")), 30, "frames")
        for _ in range(5):
            browser.press("Enter")
            time.sleep(2)
        path = IMAGES / "review.png"
        screenshot(browser).quantize(128).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


@contextmanager
def serving(*arguments: object, port: int) -> Iterator[None]:
    """Run a command of edgeloop until the context exits. Wait until the command serves its page on ``port``."""
    command = [sys.executable, "-m", "edge_agent.cli", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: listens(port), START_S, f"the page of edgeloop {arguments[0]}")
        yield
    finally:
        process.terminate()
        process.wait()


def screenshot(browser: Browser) -> Image.Image:
    """Return a screenshot of the page. Each call takes at least 1 / `PER_SECOND` seconds."""
    started = time.monotonic()
    png = base64.b64decode(browser.send("Page.captureScreenshot", format="png")["data"])
    time.sleep(max(0.0, 1 / PER_SECOND - (time.monotonic() - started)))
    with Image.open(io.BytesIO(png)) as page:
        return page.convert("RGB")


if __name__ == "__main__":
    main()
