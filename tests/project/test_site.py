"""The documentation site builds without a broken link or reference, and loads nothing from other hosts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from edge_agent.cli import COMMANDS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return folder


class Loaded(HTMLParser):
    """Collects the addresses that a browser loads with a page, not the links that a reader follows."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {"link": ("href",), "a": ()}.get(tag, ("src", "srcset", "data", "poster"))
        self.addresses += [value for name, value in attrs if name in names and value]


def loaded_by(page: str) -> list[str]:
    parser = Loaded()
    parser.feed(page)
    return parser.addresses


def elsewhere(address: str) -> bool:
    return re.match(r"(?:[a-z]+:)?//", address.strip(), re.IGNORECASE) is not None


def test_the_check_finds_what_a_page_loads() -> None:
    page = (
        '<link rel="stylesheet" href="https://fonts.example/a.css"><script src="//cdn.example/a.js"></script>'
        '<img src="images/a.png"><a href="https://example.org">read</a>'
    )
    assert [address for address in loaded_by(page) if elsewhere(address)] == [
        "https://fonts.example/a.css",
        "//cdn.example/a.js",
    ]


@pytest.mark.slow
def test_pages_load_nothing_from_other_hosts(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        addresses = loaded_by(page.read_text())
        assert addresses, page
        for address in addresses:
            assert not elsewhere(address), f"{page.name}: {address}"
            # 404.html is served for any address, so its own are absolute.
            if page.name != "404.html":
                assert (page.parent / address.partition("?")[0].partition("#")[0]).exists(), f"{page.name}: {address}"
    for sheet in site.rglob("*.css"):
        for address in re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')]+)", sheet.read_text()):
            assert not elsewhere(address), f"{sheet.name}: {address}"


@pytest.mark.slow
def test_every_command_has_a_section_with_its_options(site: Path) -> None:
    page = (site / "reference/cli.html").read_text()
    for command in COMMANDS:
        assert f'id="edgeloop-{command}"' in page, command
    assert 'id="edgeloop-deploy-push"' in page
    assert "--fine-tune [auto|none|top|all]" in page
    assert "Sentinel" not in page


@pytest.mark.slow
def test_the_python_reference_has_the_functions_that_scripts_call(site: Path) -> None:
    page = (site / "reference/python-api.html").read_text()
    for name in ("open", "read_image", "classify", "preprocess", "Observation", "train", "convert"):
        assert re.search(rf'<h[34][^>]*id="[\w.]*\b{name}"', page), name


@pytest.mark.slow
def test_every_schema_is_part_of_the_site(site: Path) -> None:
    schemas = sorted(path.name for path in (ROOT / "docs/schemas").glob("*.json"))
    assert schemas
    assert sorted(path.name for path in (site / "schemas").glob("*.json")) == schemas
