"""The live page in a real browser, fed as the agent feeds it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from edge_agent.cameras import ArrayFrame
from edge_agent.config import PageSettings
from edge_agent.page import Page
from edge_agent.preprocess import Pixels, PreprocessSpec, preprocess

from .conftest import wait_until
from .test_page import health, info, observation

HOSTILE = "<img src=x onerror=\"document.title='taken'\">"


class Browser:
    """Chromium without a window, driven over the pipe of its DevTools protocol. A context manager."""

    def __init__(self, profile: Path) -> None:
        self.console: list[str] = []
        """What was complained of on the console, and exceptions nobody caught."""
        self.requested: list[str] = []
        self._profile = profile
        self._answers: dict[int, dict[str, Any]] = {}
        self._arrived = threading.Condition()
        self._number = 0
        self._session: str | None = None

    def __enter__(self) -> Self:
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        options = [
            "--headless=new", "--no-sandbox", "--remote-debugging-pipe", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--hide-scrollbars", f"--user-data-dir={self._profile}",
        ]  # fmt: skip
        # Chromium wants its pipe at the handles 3 and 4.
        script = f'exec "$0" "$@" 3<&{commands} 4>&{answers}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, str(shutil.which("chromium")), *options],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(commands)
        os.close(answers)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._write)  # which ends it
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(5)
        self._thread.join(5)
        os.close(self._read)

    def send(self, method: str, **parameters: object) -> dict[str, Any]:
        """One command, and its answer."""
        with self._arrived:
            self._number += 1
            number = self._number
        message: dict[str, object] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        with self._arrived:
            assert self._arrived.wait_for(lambda: number in self._answers, 60), f"no answer to {method}"
            answer = self._answers.pop(number)
        assert "error" not in answer, answer
        return dict(answer["result"])

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def text(self, selector: str) -> str:
        """What an element shows; nothing while it is hidden."""
        shown = f"(e => e?.checkVisibility() ? e.innerText : '')(document.querySelector({json.dumps(selector)}))"
        return str(self.evaluate(shown))

    def open(self, url: str) -> None:
        """Go there."""
        self.send("Page.navigate", url=url)

    def look(self, path: Path, *, width: int, height: int, dark: bool) -> None:
        """Take a screenshot of the whole page."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=scheme)
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.evaluate("new Promise(done => setTimeout(done, 1500))")
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _listen(self) -> None:
        waiting = b""
        while data := os.read(self._read, 1 << 16):
            *messages, waiting = (waiting + data).split(b"\0")
            for message in map(json.loads, messages):
                self._heard(message)

    def _heard(self, message: dict[str, Any]) -> None:
        if "id" in message:
            with self._arrived:
                self._answers[message["id"]] = message
                self._arrived.notify_all()
            return
        method, parameters = message["method"], message["params"]
        if method == "Network.requestWillBeSent":
            self.requested.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.console.append(str(parameters["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.console.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.console.append(str(parameters["args"]))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def new_page(port: int, picture: Pixels) -> Page:
    frame = ArrayFrame(image=picture, seq=0)
    levels = preprocess(picture, PreprocessSpec(size=(64, 64), fit="crop", channels="bgr"))
    page = Page(
        PageSettings(port=port),
        "porch-pi",
        frame=lambda _name: frame,
        prepared=lambda _name: levels,
        region=lambda _name: (0.25, 0.0, 1.0, 1.0),
    )
    page.info(info("feeder"))
    page.camera("feeder", "online")
    return page


def shows(browser: Browser, selector: str, text: str) -> None:
    wait_until(lambda: text in browser.text(selector), 20, f"{selector} to show {text!r}: {browser.text('body')}")


@pytest.mark.needs("chromium")
def test_the_page_shows_what_the_agent_says_as_it_says_it(
    browser: Browser, areas: dict[str, dict[str, Pixels]], free_port: int
) -> None:
    browser.console.clear()
    browser.requested.clear()
    with new_page(free_port, areas["brick"]["train"]) as page:
        page.label(observation("brick", 0.81))
        browser.open(f"http://127.0.0.1:{free_port}/")
        shows(browser, ".label", "brick")
        shows(browser, "#device", "porch-pi")
        shows(browser, "#model", "ground 1.2")
        wait_until(
            lambda: bool(browser.evaluate("document.querySelector('.live .shot').naturalWidth")), 20, "a picture"
        )
        browser.evaluate("document.querySelector('.see').click()")
        shows(browser, ".model figcaption", "64 \N{MULTIPLICATION SIGN} 64")

        page.label(observation("stars", 0.92))
        page.event(observation("stars", 0.92))
        page.result(observation("stars", 0.64))
        shows(browser, ".label", "stars")
        shows(browser, "output", "64 %")
        shows(browser, ".top", "other")
        shows(browser, "#events", "stars")

        page.label(observation(HOSTILE, 0.7))
        page.event(observation(HOSTILE, 0.7))
        page.result(observation(HOSTILE, 0.7))
        for place in (".label", ".top", "#events"):
            shows(browser, place, HOSTILE)
        assert browser.evaluate("document.title") == "porch-pi, edgeloop"

        page.health(health("feeder", throttled=("under_voltage", "throttled_occurred")))
        shows(browser, "#throttled", "Under-voltage")
        shows(browser, "#throttled-before", "processor throttled")
        shows(browser, "#tiles", "61.5")

        page.camera("feeder", "lost")
        shows(browser, ".gone", "Camera lost\nsince ")
        assert browser.evaluate("getComputedStyle(document.querySelector('.live .shot')).filter") != "none"
        page.camera("feeder", "frozen")
        shows(browser, ".gone", "Picture frozen")
        page.camera("feeder", "online")
        wait_until(lambda: not browser.text(".gone"), 20, "the camera to be back")
        # Before the page ends, which a browser complains of rightly.
        assert not browser.console
        here = f"http://127.0.0.1:{free_port}/"
        assert [url for url in browser.requested if not url.startswith((here, "about:"))] == []
        assert f"{here}page.js" in browser.requested


@pytest.mark.needs("chromium")
def test_an_agent_that_goes_is_missed_and_one_that_comes_back_is_found(
    browser: Browser, areas: dict[str, dict[str, Pixels]], free_port: int
) -> None:
    with new_page(free_port, areas["brick"]["train"]) as page:
        page.label(observation("brick", 0.8))
        browser.open(f"http://127.0.0.1:{free_port}/")
        shows(browser, ".label", "brick")
        shows(browser, "#link", "live")
    shows(browser, "#lost", "is lost")
    with new_page(free_port, areas["stars"]["train"]) as page:
        page.label(observation("stars", 0.9))
        shows(browser, ".label", "stars")
        wait_until(lambda: not browser.text("#lost"), 20, "the banner to go")
        shows(browser, "#link", "live")
