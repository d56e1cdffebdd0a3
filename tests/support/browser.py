"""Chromium for the tests of pages: no window, no driver, its DevTools protocol over a pipe."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any, Self

from ..conftest import wait_until

ANSWER_S = 150.0
"""A script may decide a thousand frames at a hand's pace."""


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
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(60)
        self._thread.join(60)
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
            assert self._arrived.wait_for(lambda: number in self._answers, ANSWER_S), f"no answer to {method}"
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

    def press(self, key: str) -> None:
        """A key, as a hand presses it."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if kind == "keyDown" and text else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, **typed)

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


def shows(browser: Browser, selector: str, text: str) -> None:
    wait_until(lambda: text in browser.text(selector), 20, f"{selector} to show {text!r}: {browser.text('body')}")
