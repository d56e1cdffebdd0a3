"""The live page in a real browser, fed as the agent feeds it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edge_agent.cameras import ArrayFrame
from edge_agent.config import DashboardSettings
from edge_agent.dashboard import Dashboard
from edge_agent.preprocessing import Pixels, PreprocessSpec, preprocess

from ...conftest import wait_until
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
        assert not browser.console
        here = f"http://127.0.0.1:{free_port}/"
        assert [url for url in browser.requested if not url.startswith((here, "about:"))] == []
        assert f"{here}dashboard.js" in browser.requested


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
