"""The review page in a real browser, by its keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_agent.preprocessing import Pixels
from trainer.active_learning.annotations import Annotations

from ...conftest import CLASSES, wait_until
from ...support.browser import Browser, shows
from ...support.captured import keep
from .test_review import Server, serving

pytestmark = pytest.mark.needs("chromium")

MANY = 300
SHOWN = "document.querySelectorAll('#frames li').length"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def folder(areas: dict[str, dict[str, Pixels]], tmp_path: Path) -> Path:
    """90 frames in bursts of five."""
    random = np.random.default_rng(4)
    images, labels = [], []
    for burst in range(18):
        name = CLASSES[burst % 3]
        area = areas[name]["video"]
        top, left = int(random.integers(0, area.shape[0] - 185)), int(random.integers(0, area.shape[1] - 240))
        for number in range(5):
            images.append(np.ascontiguousarray(area[top + number : top + number + 180, left : left + 240]))
            labels.append(name)
    keep(tmp_path / "captures", images, labels, classes=CLASSES)
    return tmp_path / "captures"


def opened(browser: Browser, server: Server) -> None:
    browser.console.clear()
    browser.requested.clear()
    browser.open(f"http://127.0.0.1:{server.port}/")
    wait_until(lambda: bool(browser.evaluate(SHOWN)), 30, f"frames to be shown: {browser.text('body')}")


def group(browser: Browser) -> list[str]:
    """Hashes of the frames that are shown."""
    return list(browser.evaluate("[...document.querySelectorAll('#frames li')].map(item => item.dataset.id)"))


def latest(folder: Path) -> dict[str, tuple[str, str]]:
    return {sha256: (one.verdict, one.label) for sha256, one in Annotations(folder).latest.items()}


def saved(folder: Path, expected: dict[str, tuple[str, str]]) -> None:
    wait_until(lambda: latest(folder).items() >= expected.items(), 10, f"{expected} to be saved")


@pytest.mark.long
def test_frames_are_labelled_by_keys_alone(browser: Browser, folder: Path, run_folder: Path) -> None:
    with serving(folder, "--run", str(run_folder)) as server:
        opened(browser, server)
        shows(browser, "#count", "0 of 90 frames reviewed")
        guess = browser.text("#accept").split("\n")[0].strip().removesuffix("Enter").strip()
        assert guess in CLASSES
        first = group(browser)
        browser.press("Enter")  # accept
        wait_until(lambda: group(browser)[:1] != first[:1], 5, "the next group")
        saved(folder, dict.fromkeys(first, ("label", guess)))
        shows(browser, "#count", f"{len(first)} of 90")

        second = group(browser)
        browser.press("3")
        saved(folder, dict.fromkeys(second, ("label", CLASSES[2])))
        third = group(browser)
        while len(third) == 1:
            browser.press("s")
            third = group(browser)
        browser.press("ArrowRight")
        browser.press("x")  # all but the second
        browser.press("0")
        rest = third[:1] + third[2:]
        saved(folder, dict.fromkeys(rest, ("none", "")))
        assert group(browser) == [third[1]]  # which is asked about next
        assert third[1] not in latest(folder)
        browser.press("s")
        saved(folder, {third[1]: ("skip", "")})
        browser.press("u")
        browser.press("u")
        saved(folder, dict.fromkeys(third, ("open", "")))
        assert set(group(browser)) == set(rest)

        browser.press("/")  # a class that nobody knew
        browser.evaluate("document.querySelector('#name').value = 'red <b>brick</b>'")
        browser.evaluate("document.querySelector('#naming button[value=ok]').click()")
        saved(folder, dict.fromkeys(rest, ("label", "red <b>brick</b>")))
        shows(browser, "#classes", "red <b>brick</b>")
        assert not browser.console
        here = f"http://127.0.0.1:{server.port}/"
        assert [url for url in browser.requested if not url.startswith((here, "about:", "data:"))] == []


@pytest.mark.long
def test_zoom_filters_and_one_by_one(browser: Browser, folder: Path, run_folder: Path) -> None:
    with serving(folder, "--run", str(run_folder)) as server:
        opened(browser, server)
        browser.press("z")
        wait_until(
            lambda: browser.evaluate("document.querySelector('#zoom img').naturalWidth") == 240, 10, "the whole frame"
        )
        browser.press("z")
        assert not browser.evaluate("document.querySelector('#zoom').open")
        browser.press("o")
        wait_until(
            lambda: bool(browser.evaluate("document.querySelector('#single').checked && " + SHOWN)), 10, "frames"
        )
        frames = group(browser)
        browser.press("1")
        saved(folder, {frames[0]: ("label", CLASSES[0])})
        assert set(frames[1:]).isdisjoint(latest(folder))
        browser.evaluate(
            "(s => { s.value = 'decided'; s.dispatchEvent(new Event('change', {bubbles: true})); })"
            "(document.querySelector('#status'))"
        )
        wait_until(
            lambda: group(browser) == [frames[0]],
            10,
            f"{frames[0]} alone, not {group(browser)}: {browser.text('body')}",
        )
        browser.press("2")  # thought again
        saved(folder, {frames[0]: ("label", CLASSES[1])})


@pytest.mark.long
def test_decisions_made_while_the_server_is_gone_are_saved_when_it_is_back(
    browser: Browser, folder: Path, run_folder: Path
) -> None:
    with serving(folder, "--run", str(run_folder)) as server:
        opened(browser, server)
        first = group(browser)
        browser.press("1")
        saved(folder, dict.fromkeys(first, ("label", CLASSES[0])))
        server.kill()
        second = group(browser)
        browser.press("2")
        shows(browser, "#unsaved", "labels are not saved yet")
        third = group(browser)
        browser.press("3")
        assert set(second).isdisjoint(latest(folder))
        server.start()
        saved(folder, dict.fromkeys(second, ("label", CLASSES[1])) | dict.fromkeys(third, ("label", CLASSES[2])))
        wait_until(lambda: not browser.text("#unsaved"), 10, "the banner to go")


@pytest.mark.long
def test_many_frames_are_reviewed_and_none_is_lost_when_the_server_is_killed(
    browser: Browser, areas: dict[str, dict[str, Pixels]], run_folder: Path, tmp_path: Path
) -> None:
    random = np.random.default_rng(6)
    folder = tmp_path / "captures"
    images, labels = [], []
    for number in range(MANY):
        name = CLASSES[number % 3]
        area = areas[name]["video"]
        top, left = (int(random.integers(0, limit - 120)) for limit in area.shape[:2])
        images.append(np.ascontiguousarray(area[top : top + 120, left : left + 120]))
        labels.append(name)
    frames = set(keep(folder, images, labels, classes=CLASSES))  # a few are the same to the bit
    with serving(folder, "--run", str(run_folder)) as server:
        opened(browser, server)
        measured = json.loads(str(browser.evaluate(f"{REVIEW}(0)")))
        server.kill()
        found = latest(folder)
        assert measured["decided"] == len(frames) > 0.95 * MANY
        assert set(found) == frames
        assert {verdict for verdict, _ in found.values()} == {"label"}
        shows(browser, "#empty", "All frames are reviewed")
        server.start()


# Decides one frame after the other by keys, until none is left, and until the server has confirmed all of them.
# Milliseconds from a key to the next, at least, are put in front.
REVIEW = """(async pace => {
  const frames = document.querySelector('#frames'), painted = () => new Promise(done => requestAnimationFrame(done));
  const interactive = performance.getEntriesByType('navigation')[0].startTime;
  document.querySelector('#single').click();
  const first = async () => { while (!frames.children.length) await painted(); };
  await first();
  const took = [];
  for (let number = 0; number < 5000; number++) {
    const item = frames.firstElementChild;
    if (!item) {
      await new Promise(done => setTimeout(done, 50));
      if (!document.querySelector('#empty').hidden) break;
      continue;
    }
    const start = performance.now(), id = item.dataset.id;
    document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '1', bubbles: true}));
    while (frames.firstElementChild?.dataset.id === id) await painted();
    const image = frames.firstElementChild?.querySelector('img');
    if (image) await image.decode();
    took.push(performance.now() - start);
    if (pace) await new Promise(done => setTimeout(done, start + pace - performance.now()));
  }
  while (Object.keys(localStorage).some(key => key.startsWith('edgeloop review') && localStorage[key] !== '[]'))
    await new Promise(done => setTimeout(done, 50));
  took.sort((a, b) => a - b);
  const at = share => took[Math.floor(share * (took.length - 1))];
  return JSON.stringify({decided: took.length, median_ms: at(0.5), p99_ms: at(0.99), most_ms: at(1)});
})"""
