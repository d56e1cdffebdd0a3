"""Record docs/images/dashboard.webp: the dashboard while the agent watches the demo's video.

    edgeloop demo --keep ~/edgeloop-demo
    python -m docs.record_dashboard ~/edgeloop-demo

Needs the development environment (make env-dev) and Chromium. Run it from the repository's root.
"""

from __future__ import annotations

import base64
import io
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import yaml
from PIL import Image

from deploy.pipelines.demo.broker import embedded_broker
from tests.support.browser import Browser

OUT = Path(__file__).parent / "images" / "dashboard.webp"
WIDTH, HEIGHT = 1000, 740
"""Pixels of the page that are recorded, from the top."""
SHOWN_WIDTH = 800
FRAMES, PER_SECOND = 30, 3
WARM_UP_S = 40.0
"""Seconds before the recording, so that the curves show something."""


def main() -> None:
    demo = Path(sys.argv[1]).expanduser().resolve()
    bundle, video = next(demo.rglob("*.edgeloop")), next(demo.rglob("*.avi"))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        settings = {
            "device": "bench-pi",
            "bundle": str(bundle),
            "cameras": {"bench": {"source": str(video), "loop": True}},
            "mqtt": {"host": "127.0.0.1", "port": stack.enter_context(embedded_broker(folder))},
            "dashboard": {"port": port},
            "state": str(folder / "state"),
        }
        (folder / "agent.yaml").write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "edge_agent.cli", "run", "--config", str(folder / "agent.yaml")]
        agent = stack.enter_context(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        stack.callback(agent.terminate)
        browser = stack.enter_context(Browser(folder / "profile"))
        browser.send(
            "Emulation.setDeviceMetricsOverride", width=WIDTH, height=HEIGHT, deviceScaleFactor=1, mobile=False
        )
        time.sleep(3)
        browser.open(f"http://127.0.0.1:{port}/")
        time.sleep(WARM_UP_S)
        save([screenshot(browser) for _ in range(FRAMES)])
    print(f"{OUT}: {OUT.stat().st_size / 1e6:.2f} MB")


def screenshot(browser: Browser) -> Image.Image:
    """Take one frame of the recording, at the pace of ``PER_SECOND``."""
    started = time.monotonic()
    png = base64.b64decode(browser.send("Page.captureScreenshot", format="png")["data"])
    time.sleep(max(0.0, 1 / PER_SECOND - (time.monotonic() - started)))
    with Image.open(io.BytesIO(png)) as page:
        return page.convert("RGB").resize((SHOWN_WIDTH, round(HEIGHT * SHOWN_WIDTH / WIDTH)), Image.Resampling.LANCZOS)


def save(frames: list[Image.Image]) -> None:
    """Write the animation."""
    duration_ms = 1000 // PER_SECOND
    frames[0].save(OUT, save_all=True, append_images=frames[1:], duration=duration_ms, loop=0, quality=60)


if __name__ == "__main__":
    main()
