"""`edgeloop search`: heads trained, quantized and measured, and the one that is recommended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.pipelines.search import SearchCandidate, SearchResult, recommend, train_command
from edge_agent.bench.report import load

from ..conftest import Run

pytestmark = pytest.mark.timeout(300)


def found(size: int, accuracy: float, p50_ms: float, images: int = 100) -> SearchResult:
    return SearchResult(
        SearchCandidate("efficientnet-lite0", size), accuracy, images, p50_ms, 2 * p50_ms, 4.0, "0" * 64
    )


@pytest.mark.parametrize(
    ("budget_ms", "size"),
    [
        (1.0, None),
        (3.0, 96),  # the only one so fast
        (6.0, 128),  # 160 is a point better, which 100 images cannot tell
        (50.0, 128),
    ],
)
def test_the_fastest_that_cannot_be_told_from_the_best_is_recommended(budget_ms: float, size: int | None) -> None:
    known = [found(224, 0.93, 40), found(160, 0.92, 5), found(128, 0.91, 4), found(96, 0.70, 2)]
    chosen = recommend(known, budget_ms)
    assert (None if chosen is None else chosen.candidate.size) == size
    assert recommend([], budget_ms) is None


def test_with_more_test_images_a_point_is_a_point() -> None:
    known = [found(160, 0.92, 5, 20_000), found(128, 0.91, 4, 20_000)]
    chosen = recommend(known, 50)
    assert chosen is not None
    assert chosen.candidate.size == 160


def test_the_command_is_one_a_shell_takes(tmp_path: Path) -> None:
    assert train_command(tmp_path / "my birds", found(96, 1, 1)) == (
        f"edgeloop train '{tmp_path}/my birds' --out runs/efficientnet-lite0-96 --backbone efficientnet-lite0 "
        "--image-size 96"
    )
    assert SearchCandidate("kerashub:mobilenet_v3/small", 64).name == "kerashub-mobilenet-v3-small-64"


@pytest.mark.long
def test_a_search_goes_on_where_it_was_and_measures_what_it_made(
    edgeloop: Run, photo_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "search"
    options = ("--threads", 1, "--out", out)
    ran = edgeloop("search", photo_folder, *options, "--size", 64, "--budget-ms", 1000, "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told["train"] == (
        f"edgeloop train {photo_folder} --out runs/efficientnet-lite0-64 --backbone efficientnet-lite0 --image-size 64"
    )
    bundle = out / "efficientnet-lite0-64/efficientnet-lite0-64-1.edgeloop"
    kept, before = bundle.stat().st_mtime_ns, load(out / "bench.json")
    assert [one.digest for one in before.bundles] == [told["recommended"]["digest"]]

    # What is there is not made again; what is new is, and measured beside it. Nothing is so fast.
    ran = edgeloop("search", photo_folder, *options, "--size", 64, "--size", 96, "--budget-ms", 0.0001)
    assert ran.code == 1
    assert bundle.stat().st_mtime_ns == kept
    assert ran.err.count("42 for training") == 1
    assert "no candidate is within 0.0001 ms; the fastest, efficientnet-lite0-64, takes" in ran.err
    assert "recommended" not in ran.out
    report = load(out / "bench.json")
    times = {one.name: steady.invoke.p50 for one, steady in zip(report.bundles, report.steady, strict=True)}
    # Twice the pixels and more: whatever the machine does meanwhile.
    assert times["efficientnet-lite0-64"] < times["efficientnet-lite0-96"]
    assert (out / "search.html").read_text().count("<svg ") >= 2


def test_another_search_is_not_mixed_with_one_that_is_there(edgeloop: Run, photo_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "search"
    out.mkdir()
    (out / "search.json").write_text(json.dumps({"data": "/elsewhere", "seed": 0, "target": "this machine"}))
    ran = edgeloop("search", photo_folder, "--budget-ms", 5, "--out", out)
    assert (ran.code, "started with /elsewhere" in ran.line) == (2, True)
    (out / "search.json").unlink()
    (out / "mine.txt").touch()
    ran = edgeloop("search", photo_folder, "--budget-ms", 5, "--out", out)
    assert (ran.code, "not empty and not written by a search" in ran.line) == (2, True)
    assert edgeloop("search", photo_folder).code == 2
    ran = edgeloop("search", photo_folder, "--budget-ms", 5, "--backbone", "mobilenet-v9", "--out", tmp_path / "new")
    assert (ran.code, "mobilenet-v9" in ran.line) == (2, True)
