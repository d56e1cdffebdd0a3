"""The live page in a real browser, fed as the agent feeds it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge_agent.cameras import ArrayFrame
from edge_agent.config import DashboardSettings
from edge_agent.dashboard import Dashboard
from edge_agent.preprocessing import Pixels, PreprocessSpec, preprocess

from ...conftest import SEARCH, find_free_port, listens, wait_until
from ...support.browser import Browser, shows
from .test_dashboard import health, info, observation

HOSTILE = "<img src=x onerror=\"document.title='taken'\">"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def new_page(port: int, image: Pixels) -> Dashboard:
    frame = ArrayFrame(image=image, seq=0)
    levels = preprocess(image, PreprocessSpec(size=(64, 64), fit="crop", channels="bgr"))
    page = Dashboard(
        DashboardSettings(port=port),
        "porch-pi",
        frame=lambda _name: frame,
        prepared=lambda _name: levels,
        region=lambda _name: (0.25, 0.0, 1.0, 1.0),
    )
    page.info(info("feeder"))
    page.camera("feeder", "online")
    return page


@contextmanager
def shown(port: int, image: Pixels) -> Iterator[Dashboard]:
    with new_page(port, image) as page:
        wait_until(lambda: listens(port), 20, "the page")
        yield page


@contextmanager
def behind_nginx(folder: Path, port: int, target: int, more: str = "") -> Iterator[None]:
    """nginx, which serves the page below the path /cams/porch/ on its own port."""
    binary = shutil.which("nginx", path=SEARCH)
    assert binary is not None
    folder.mkdir()
    temporary = " ".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; {temporary} server {{ listen 127.0.0.1:{port};\n"
        f"  location /cams/porch/ {{ proxy_pass http://127.0.0.1:{target}/; {more} }} }} }}\n"
    )
    process = subprocess.Popen([binary, "-p", str(folder), "-e", str(folder / "error.log"), "-c", "nginx.conf"])
    try:
        wait_until(lambda: listens(port), 20, "nginx")
        yield
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.needs("chromium", "nginx")
@pytest.mark.parametrize("host", ["of nginx", "of the browser"])
def test_the_page_works_below_a_path_of_a_reverse_proxy(
    browser: Browser, areas: dict[str, dict[str, Pixels]], tmp_path: Path, host: str
) -> None:
    page = new_page(find_free_port(), areas["brick"]["train"])
    (tmp_path / "password").write_text("an open secret\n")
    page._settings = DashboardSettings(port=page._settings.port, password_file=str(tmp_path / "password"))
    port, more = find_free_port(), "" if host == "of nginx" else "proxy_set_header Host $http_host;"
    with page, behind_nginx(tmp_path / "nginx", port, page._settings.port, more):
        wait_until(lambda: listens(page._settings.port), 20, "the page")
        page.label(observation("brick", 0.81))
        browser.console.clear()
        browser.open(f"http://127.0.0.1:{port}/cams/porch/?token=an%20open%20secret")
        shows(browser, ".label", "brick")
        assert browser.evaluate("location.pathname + location.search") == "/cams/porch/"
        wait_until(lambda: bool(browser.evaluate("document.querySelector('.live .shot').naturalWidth")), 20, "an image")
        page.label(observation("stars", 0.92))  # comes over the event stream
        shows(browser, ".label", "stars")
        assert not [line for line in browser.console if "favicon" not in line]  # nginx has none


@pytest.mark.needs("chromium")
def test_the_page_shows_what_the_agent_says_as_it_says_it(
    browser: Browser, areas: dict[str, dict[str, Pixels]], free_port: int
) -> None:
    browser.console.clear()
    browser.requested.clear()
    with shown(free_port, areas["brick"]["train"]) as page:
        page.label(observation("brick", 0.81))
        browser.open(f"http://127.0.0.1:{free_port}/")
        shows(browser, ".label", "brick")
        shows(browser, "#device", "porch-pi")
        shows(browser, "#model", "ground 1.2")
        wait_until(lambda: bool(browser.evaluate("document.querySelector('.live .shot').naturalWidth")), 20, "an image")
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
        shows(browser, ".gone", "Image frozen")
        page.camera("feeder", "online")
        wait_until(lambda: not browser.text(".gone"), 20, "the camera to be back")
        # Before the page ends, which a browser complains of rightly.
        assert not [line for line in browser.console if "favicon" not in line]  # nginx has none
        here = f"http://127.0.0.1:{free_port}/"
        assert [url for url in browser.requested if not url.startswith((here, "about:"))] == []
        assert f"{here}dashboard.js" in browser.requested


@pytest.mark.needs("chromium")
def test_an_agent_that_goes_is_missed_and_one_that_comes_back_is_found(
    browser: Browser, areas: dict[str, dict[str, Pixels]], free_port: int
) -> None:
    with shown(free_port, areas["brick"]["train"]) as page:
        page.label(observation("brick", 0.8))
        browser.open(f"http://127.0.0.1:{free_port}/")
        shows(browser, ".label", "brick")
        shows(browser, "#link", "live")
    shows(browser, "#lost", "is lost")
    with shown(free_port, areas["stars"]["train"]) as page:
        page.label(observation("stars", 0.9))
        shows(browser, ".label", "stars")
        wait_until(lambda: not browser.text("#lost"), 20, "the banner to go")
        shows(browser, "#link", "live")
