"""The report: what it says, that it says it to everyone, and that nothing hostile gets through."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from edge_agent.inference.evaluation import Evaluation
from trainer.data import Dataset, Finding, Photo
from trainer.report import ReportData, advice, figures, learning_curve, plots, summary, write_report
from trainer.report.activation_maps import activation_maps
from trainer.report.learning_curve import DataSize, Forecast, Point, learn_from_shares
from trainer.report.metrics import without_temperature
from trainer.report.thumbnails import data_uri, highlighted

if TYPE_CHECKING:
    import keras

    from trainer.data import PixelRows

EVIL = (
    "<script>alert(1)</script>",
    "cost $5 $x^",
    "a" * 200,
    "🦊 fox",
    "קיפוד",
    "{{ 7*7 }}",
    "' onload='alert(1)",
    '"><img src=x>',
    "a/b \\ c",
)
SIDE = 32


def evaluation(labels: Sequence[str], truth: Sequence[int], said: Sequence[int], top: float = 0.8) -> Evaluation:
    scores = np.full((len(truth), len(labels)), (1 - top) / (len(labels) - 1), np.float32)
    scores[np.arange(len(truth)), list(said)] = top
    return Evaluation(tuple(labels), np.array(truth, np.intp), scores)


def story(
    labels: Sequence[str] = ("owl", "robin"),
    *,
    train: int = 8,
    wrong: int = 2,
    tests: int = 5,
    pixels: npt.NDArray[np.uint8] | None = None,
    findings: tuple[Finding, ...] = (),
    **more: Any,
) -> ReportData:
    """``train`` training and ``tests`` test images a class; the first ``wrong`` of a class are taken for the next."""
    photos = [
        Photo(f"{split}/{i}/{number}.jpg", label, split)
        for split, count in (("train", train), ("test", tests))
        for i, label in enumerate(labels)
        for number in range(count)
    ]
    tested = np.arange(train * len(labels), len(photos))
    truth = np.repeat(np.arange(len(labels)), tests)
    said = [(t + 1) % len(labels) if n % tests < wrong else t for n, t in enumerate(truth.tolist())]
    if pixels is None:
        pixels = np.zeros((len(photos), SIDE, SIDE, 3), np.uint8)
    dataset = Dataset(tuple(labels), tuple(photos), cast("PixelRows", pixels), None, findings)
    return ReportData(dataset=dataset, tested=tested, test=evaluation(labels, truth.tolist(), said), **more)


def written(path: Path, what: ReportData) -> str:
    write_report(path / "report.html", what)
    return (path / "report.html").read_text(encoding="utf-8")


def without_images(report: str) -> str:
    return re.sub(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+", "data:", report)


class Tags(HTMLParser):
    """What a browser would make elements and attributes of."""

    def __init__(self, report: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.addresses: list[str] = []
        self.feed(report)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]


def small_network(classes: int = 2, *, hidden: bool = False, pool: bool = True) -> keras.Model:
    """Reads colours: red speaks for class 0, green for 1."""
    import keras

    inputs = keras.Input((SIDE, SIDE, 3))
    x = keras.layers.AveragePooling2D(4, name="map")(inputs)
    x = keras.layers.GlobalAveragePooling2D(name="features")(x) if pool else keras.layers.Flatten(name="features")(x)
    if hidden:
        x = keras.layers.Dense(x.shape[-1])(x)
    outputs = keras.layers.Dense(classes, activation="softmax", name="scores")(x)
    model = keras.Model(inputs, outputs)
    if pool and not hidden:
        kernel = np.zeros((3, classes), np.float32)
        kernel[0, 0] = kernel[1, 1] = 1
        model.get_layer("scores").set_weights([kernel, np.zeros(classes, np.float32)])
    return model


# --- the page ---


def test_the_report_stands_alone_and_shows_the_figures(run_folder: Path) -> None:
    report = without_images((run_folder / "report.html").read_text(encoding="utf-8"))
    metrics = json.loads((run_folder / "metrics.json").read_text(encoding="utf-8"))
    assert f"{100 * metrics['test']['accuracy']:.1f} % of 9 test images" in report
    assert "http" not in report
    assert "url(" not in re.sub(r"url\(#[a-z0-9]+\)", "", report)
    tags = Tags(report)
    assert not tags.tags.keys() & {"link", "iframe", "object", "embed", "base"}
    assert all(address.startswith(("data:", "#")) for address in tags.addresses)
    assert tags.tags["svg"] == 3  # loss, accuracy, reliability; 9 test images make no learning curve
    for sentence in metrics["advice"]:
        assert sentence.split(":")[0] in report


def test_the_report_of_a_real_run_shows_where_the_model_looks(run_folder: Path) -> None:
    report = (run_folder / "report.html").read_text(encoding="utf-8")
    assert "Have I labelled enough?" in report
    assert report.count('alt="where the evidence for ') >= 3


@pytest.mark.parametrize("classes", [2, len(EVIL), 60])
def test_class_names_cannot_inject_into_the_report(tmp_path: Path, classes: int) -> None:
    labels = (*EVIL, *(f"class {i}" for i in range(60)))[:classes]
    history = [{"phase": "head", "loss": 0.5, "val_loss": 0.6, "val_accuracy": 0.7}]
    finding = Finding("label", f"labels {EVIL[0]} look wrong", (("test/0/0.jpg",), ("gone/<b>.jpg",)))
    report = written(
        tmp_path, story(labels, history=history, findings=(finding,), subject=EVIL[0], recipe={EVIL[0]: EVIL[7]})
    )
    tags = Tags(report)
    assert tags.tags["script"] == 1
    assert not {name for name in tags.attributes if name.startswith("on")}
    assert all(address.startswith(("data:", "#")) for address in tags.addresses)
    assert "&lt;script&gt;alert(1)" in report
    assert "<script>alert" not in report
    if classes > 5:
        assert "{{ 7*7 }}" in report


def test_a_report_of_sixty_classes_has_a_list_and_a_image_and_one_of_two_has_numbers(tmp_path: Path) -> None:
    report = written(tmp_path, story([f"class {i}" for i in range(60)]))
    assert Tags(report).tags["td"] == 60 * 6  # class by class: name, train, test, recall, precision, F1
    (png,) = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", report)
    cells = cv2.imdecode(np.frombuffer(base64.b64decode(png), np.uint8), cv2.IMREAD_UNCHANGED)
    assert cells is not None
    assert cells.shape == (60, 60, 4)
    assert cells[7, 7].tolist() == [201, 107, 42, round(255 * 0.6**0.5)]  # blue, 3 of 5
    assert cells[7, 8].tolist() == [13, 115, 217, round(255 * 0.4**0.5)]  # orange, 2 of 5
    assert cells[8, 7, 3] == 0
    two = written(tmp_path, story())
    assert 'title="2 of 5: owl misclassified as robin">2<' in two
    assert "--cell:rgba(217,115,13,0.47)" in two  # 2 of 5, from 0.12 to 1
    assert "--cell:rgba(42,107,201,0.65)" in two
    assert 'class="heat' not in two
    assert '<bdi title="owl">owl</bdi> misclassified as <bdi title="robin">robin</bdi></span><span>2 of 5' in two


def test_a_report_stays_small_whatever_the_data(tmp_path: Path) -> None:
    labels = [f"class {i:03d}" for i in range(150)]
    noise = np.random.default_rng(0).integers(0, 256, (150 * 4, 300, 300, 3), dtype=np.uint8)
    sets = [tuple(f"{split}/{i}/0.jpg" for split in ("train", "test")) for i in range(24)]
    findings = tuple(Finding("leak", f"finding {i}", tuple(sets)) for i in range(50))
    report = written(tmp_path, story(labels, train=2, tests=2, wrong=1, pixels=noise, findings=findings))
    assert len(report) < 3_000_000
    assert report.count("data:image/jpeg") > 80


def test_the_surest_mistakes_come_first_and_near_misses_are_right(tmp_path: Path) -> None:
    what = story(tests=30, wrong=25)
    scores = what.test.scores.copy()
    wrong, right = np.flatnonzero(~what.test.right), np.flatnonzero(what.test.right)
    for rank, place in enumerate(wrong):
        scores[place, what.test.predicted[place]] = 0.6 + rank / 1000
        scores[place, what.test.truth[place]] = 0.4 - rank / 1000
    scores[right[3]] = 0.5
    scores[right[3], what.test.truth[right[3]]] = 0.51
    report = written(tmp_path, replace(what, test=Evaluation(what.labels, what.test.truth, scores)))
    mistakes, near = report.split("Worst mistakes</h2>")[1].split("Near misses</h2>")
    shown = re.findall(r'<span class="path">([^<]+)<', mistakes)
    assert shown == [what.photo(place).path for place in wrong[::-1][:18]]
    assert "The 18 most confident of 50 mistakes" in mistakes
    said = re.findall(r"<b><bdi[^>]*>(\w+)<[^>]*></b> misclassified as <b[^>]*><bdi[^>]*>(\w+)<", mistakes)
    assert Counter(said) == Counter(
        (what.labels[what.test.truth[place]], what.labels[what.test.predicted[place]]) for place in wrong[::-1][:18]
    )
    assert re.findall(r'<span class="path">([^<]+)<', near)[0] == what.photo(int(right[3])).path


def test_colours_are_right_whatever_the_channel_order(tmp_path: Path) -> None:
    shown = {}
    for channels in ("rgb", "bgr"):
        pixels = np.zeros((26, SIDE, SIDE, 3), np.uint8)
        pixels[..., 0 if channels == "rgb" else 2] = 255  # red
        report = written(tmp_path, story(pixels=pixels, channels=channels))
        jpeg = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", report)[0]
        shown[channels] = cv2.imdecode(np.frombuffer(base64.b64decode(jpeg), np.uint8), cv2.IMREAD_COLOR)
    assert shown["rgb"] is not None
    assert np.array_equal(shown["rgb"], shown["bgr"])  # type: ignore[arg-type]
    assert shown["rgb"][16, 16].tolist() == pytest.approx([0, 0, 255], abs=5)


def test_doubts_come_before_the_figures(tmp_path: Path) -> None:
    leak = Finding("leak", "9 images are near duplicates in different splits", (("test/0/0.jpg", "train/0/1.jpg"),))
    report = written(tmp_path, story(findings=(leak,), doubts=("It was trained on some of these.",)))
    top = report.split("What to do next</h2>")[0]
    assert "Take this figure with care" in top
    assert "9 images are near duplicates" in top
    assert "trained on some of these" in top
    images = report.split("The images</h2>")[1]
    assert "owl</bdi>, test" in images
    assert "owl</bdi>, train" in images
    assert "Take this figure with care" not in written(tmp_path, story())


def test_an_existing_report_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("the old one")
    with pytest.raises(IndexError):
        write_report(path, replace(story(), tested=range(1000, 1010)))
    assert path.read_text() == "the old one"
    opened = path.open()  # by a browser, say
    write_report(path, story())
    assert opened.read() == "the old one"
    opened.close()
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text(encoding="utf-8").strip().startswith("<!doctype html>")


def test_charts_carry_no_state_and_no_fonts_of_their_own() -> None:
    code = """
from trainer.report import plots
from edge_agent.inference.evaluation import Evaluation
import numpy as np, sys
row = {"phase": "head", "loss": 1.0, "val_loss": 1.1, "val_accuracy": 0.5}
charts = plots.learning_charts([row] * 3 + [{**row, "phase": "fine-tune"}] * 3, kept=4)
found = Evaluation(("a", "b"), np.array([0, 1]), np.array([[0.9, 0.1], [0.7, 0.3]], np.float32))
charts.append(plots.reliability_chart(found.reliability(), None))
assert "matplotlib.pyplot" not in sys.modules and "keras" not in sys.modules
print("\\n".join(charts))
"""
    drawn = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert "fine-tune" in drawn.stdout
    assert "kept" in drawn.stdout
    assert not re.search(r"http|font-family|<style|#0[0-9a-f]0[0-9a-f]0|<\?xml", drawn.stdout)
    assert "var(--ink)" in drawn.stdout


# --- what the model looks at ---


def test_activation_maps_show_where_the_evidence_lies() -> None:
    images = np.zeros((2, SIDE, SIDE, 3), np.uint8)
    images[:, 4:8, 24:28, 0] = 200  # red, upper right
    images[:, 24:28, 4:8, 1] = 200  # green, lower left
    maps = activation_maps(small_network(), list(images), [0, 1])
    assert maps is not None
    assert [found.shape for found in maps] == [(8, 8), (8, 8)]
    assert [divmod(int(found.argmax()), 8) for found in maps] == [(1, 6), (6, 1)]
    assert maps[0][6, 1] == 0  # what speaks for the other class is not lit
    assert maps[0].max() == 1


def test_activation_maps_account_for_the_score_exactly() -> None:
    import keras

    model = small_network(3)
    random = np.random.default_rng(0)
    kernel = random.normal(size=(3, 3)).astype(np.float32)
    model.get_layer("scores").set_weights([kernel, np.zeros(3, np.float32)])
    pixels = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    feature_map = keras.ops.convert_to_numpy(keras.Model(model.input, model.get_layer("map").output)(pixels[None]))[0]
    logits = feature_map.mean(axis=(0, 1)) @ kernel
    evidence = feature_map @ (kernel[:, 1] - kernel.mean(axis=1))
    assert evidence.mean() == pytest.approx(logits[1] - logits.mean(), rel=1e-3)
    maps = activation_maps(model, [pixels], [1])
    assert maps is not None
    expected = np.maximum(evidence, 0)
    assert maps[0] == pytest.approx(expected / max(expected.max(), 1e-9), abs=1e-4)


@pytest.mark.parametrize("how", [{"hidden": True}, {"pool": False}])
def test_a_model_of_another_build_has_no_maps_and_a_report_all_the_same(tmp_path: Path, how: dict[str, bool]) -> None:
    model = small_network(**how)
    assert activation_maps(model, [np.zeros((SIDE, SIDE, 3), np.uint8)], [0]) is None
    report = written(tmp_path, story(model=model))
    assert "where the evidence" not in report
    assert "Worst mistakes" in report


def test_what_is_lit_keeps_its_colour_and_the_rest_goes_dark() -> None:
    pixels = np.full((32, 32, 3), 200, np.uint8)
    heat = np.zeros((4, 4), np.float32)
    heat[:2, :2] = 1
    shown = highlighted(pixels, heat)
    assert shown[3, 3].mean() > 150
    assert shown[28, 28].mean() < 90


def test_a_thumbnail_is_never_large() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (176, 172, 3), dtype=np.uint8)
    uri = data_uri(noise)
    data = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    assert len(data) <= 12_000
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    assert image.shape == (176, 172, 3)


# --- have I labelled enough? ---


def blobs(per_class: int, *, spread: float, seed: int = 0, classes: int = 3) -> tuple[Any, Any]:
    """Features of classes that overlap the more, the larger the spread; and the classes."""
    random = np.random.default_rng(seed)
    truth = np.tile(np.arange(classes), per_class)
    centres = np.random.default_rng(99).normal(size=(classes, 40))
    return (centres[truth] + spread * random.normal(size=(len(truth), 40))).astype(np.float32), truth


def learned(per_class: int, spread: float, *, tests: int = 60, groups: Sequence[str] = (), seed: int = 0) -> DataSize:
    features, truth = blobs(per_class + tests, spread=spread)
    train = np.arange(per_class * 3)
    tested = np.arange(per_class * 3, len(truth))
    return learn_from_shares(
        features,
        train=train,
        train_truth=truth[train],
        groups=groups or [""] * len(train),
        tested=tested,
        test_truth=truth[tested],
        classes=3,
        seed=seed,
    )


def test_more_images_promise_more_where_they_help_and_little_where_they_do_not() -> None:
    steep, flat = learned(20, 3.0), learned(600, 1.6)
    assert steep.points[-1].accuracy > steep.points[0].accuracy + 0.05
    gains = [found.forecasts[0].avoided * (1 - found.points[-1].accuracy) for found in (steep, flat)]
    assert gains[0] > 0.03
    assert gains[1] < 0.012
    for found in (steep, flat):
        for forecast in found.forecasts:
            assert 0 <= forecast.low <= forecast.avoided <= forecast.high <= 1
    error = 1 - steep.points[-1].accuracy
    assert advice.about_data_size(steep, error)[0].text.startswith("Label more images. Twice as many")
    easy = replace(flat, forecasts=(Forecast(2, 0.01, 0.0, 0.05),))
    assert advice.about_data_size(easy, 0.1)[0].text.startswith("Do not label more images of the same kind.")
    assert advice.about_data_size(replace(flat, forecasts=()), 0.1) == []


def test_the_forecast_comes_true() -> None:
    before, after = learned(40, 3.0, tests=400), learned(80, 3.0, tests=400)
    error = 1 - before.points[-1].accuracy
    gain = after.points[-1].accuracy - before.points[-1].accuracy
    twice = before.forecasts[0]
    assert twice.low * error - 0.02 <= gain <= twice.high * error + 0.02


def test_the_curve_is_the_same_for_the_same_seed() -> None:
    assert learned(20, 3.0, seed=4) == learned(20, 3.0, seed=4)
    assert learned(20, 3.0, seed=4) != learned(20, 3.0, seed=5)


def test_too_few_images_say_so_instead_of_guessing() -> None:
    few_tests = learned(20, 3.0, tests=5)
    assert few_tests.points == ()
    assert "15 test images are too few" in advice.size_sentence(few_tests, 0.2)
    few = learned(3, 3.0)
    assert few.forecasts == ()
    assert "9 training images are too few" in advice.size_sentence(few, 0.2)
    perfect = learned(60, 0.01)
    assert perfect.forecasts == ()
    assert "no mistake" in advice.size_sentence(perfect, 0.2)


def test_shares_are_nested_stratified_and_add_whole_groups() -> None:
    truth = np.repeat([0, 1], [12, 6])
    groups = [f"burst {i // 3}" if i < 12 else "" for i in range(18)]
    ranks = learning_curve._ranks(truth, groups, np.random.default_rng(3))
    for c, count in ((0, 12), (1, 6)):
        assert sorted(ranks[truth == c].tolist()) == list(range(count))
    for burst in range(4):
        places = sorted(ranks[burst * 3 : burst * 3 + 3].tolist())
        assert places == list(range(places[0], places[0] + 3))
        assert places[0] % 3 == 0
    assert learning_curve._quota(np.array([12, 6, 1]), 0.25).tolist() == [3, 2, 1]


def test_both_ways_to_the_least_squares_head_are_one() -> None:
    features, truth = blobs(100, spread=2.5)
    learned_from = np.concatenate([np.flatnonzero(truth == c)[: 40 // (c + 1)] for c in range(3)])  # 40, 20 and 13
    asked_of = np.arange(200, 300)
    rows, asked = learning_curve._standardised(features, learned_from, asked_of)
    wide, asked_wide = (np.pad(some, ((0, 0), (0, 60))) for some in (rows, asked))  # more features than images
    primal = learning_curve._predictions(rows, truth[learned_from], asked, 3)
    assert np.array_equal(primal, learning_curve._predictions(wide, truth[learned_from], asked_wide, 3))
    assert (primal == truth[asked_of]).mean() > 0.6


def test_the_power_law_is_found_again() -> None:
    sizes = np.array([30, 60, 120, 240, 480])
    errors = 0.1 + 0.9 * sizes**-0.5
    gain = learning_curve._power_law_gain(sizes, errors[None], 480, 2)[0]
    expected = (errors[-1] - (0.1 + 0.9 * 960**-0.5)) / errors[-1]
    assert gain == pytest.approx(expected, rel=0.02)
    steady = learning_curve._steady_gain(sizes, (0.5 - 0.05 * np.log2(sizes / 480))[None], 480, 4)[0]
    assert steady == pytest.approx(0.1 / 0.5)


def test_only_so_many_images_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning_curve, "MAX_TRAIN", 60)
    monkeypatch.setattr(learning_curve, "MAX_TEST", 30)
    found = learned(100, 3.0)
    assert (found.points[-1].train_images, found.train_images, found.test_images) == (60, 300, 30)
    assert "600" in advice.size_sentence(found, 0.2)
    assert "forecast" not in plots.data_size_chart(found)
    assert "forecast" in plots.data_size_chart(learned(20, 3.0))


# --- advice: each sentence for who deserves it ---


def test_pairs_that_are_confused_are_named_and_a_stray_mistake_is_not() -> None:
    labels = ("owl", "robin", "wren")
    truth = [0] * 10 + [1] * 10 + [2] * 10
    said = [1] * 4 + [0] * 6 + [0] * 2 + [1] * 8 + [2] * 10
    (found,) = advice.about_confused_pairs(evaluation(labels, truth, said))
    assert "“owl” and “robin” (6 of 20)" in found.text
    assert "100 % of all mistakes" in found.text
    assert found.stake == pytest.approx(0.1)
    assert advice.about_confused_pairs(evaluation(labels, truth, [1, *truth[1:]])) == []
    assert advice.about_confused_pairs(evaluation(labels, truth, truth)) == []


def test_weak_classes_are_told_what_they_lack() -> None:
    labels = ("owl", "robin", "wren")
    truth = [0] * 20 + [1] * 20 + [2] * 20
    test = evaluation(labels, truth, [1] * 15 + [0] * 5 + [1] * 20 + [2] * 20)
    (rare,) = advice.about_weak_classes(test, {"owl": 5, "robin": 60, "wren": 60})
    assert rare.text.startswith("Photograph more of the rare classes: “owl” has 5 training images")
    assert "5 of 20" in rare.text
    (hard,) = advice.about_weak_classes(test, {"owl": 60, "robin": 60, "wren": 60})
    assert hard.text.startswith("Find out why these classes are hard to recognise")
    assert "They do not lack training images" in hard.text
    (unknown,) = advice.about_weak_classes(test, {})
    assert "They do not lack training images" not in unknown.text
    assert advice.about_weak_classes(evaluation(labels, truth, truth), {}) == []


def test_imbalance_is_named_from_three_to_one() -> None:
    test = evaluation(("owl", "robin"), [0, 0, 1, 1], [1, 0, 1, 1])
    (found,) = advice.about_imbalance(test, {"owl": 10, "robin": 30})
    assert "“robin” has 30 training images, “owl” 10" in found.text
    assert found.stake == pytest.approx(1 / 16)
    assert advice.about_imbalance(test, {"owl": 10, "robin": 29}) == []
    assert advice.about_imbalance(test, {}) == []


def test_few_test_images_and_easy_ones_are_named() -> None:
    few = advice.about_test_images(evaluation(("a", "b"), [0, 1] * 20, [0, 1] * 15 + [1, 0] * 5))
    assert [one.text.split(":")[0] for one in few] == ["Test on more images"]
    assert "2.5 points" in few[0].text
    easy = advice.about_test_images(evaluation(("a", "b"), [0, 1] * 500, [0, 1] * 500))
    assert [one.text.split(":")[0] for one in easy] == ["Test on harder images"]
    enough = evaluation(("a", "b"), [0, 1] * 500, [0, 1] * 480 + [1, 0] * 20)
    assert advice.about_test_images(enough) == []


def test_test_images_unlike_the_validation_images_are_noticed() -> None:
    good = evaluation(("a", "b"), [0, 1] * 100, [0, 1] * 95 + [1, 0] * 5)
    bad = evaluation(("a", "b"), [0, 1] * 100, [0, 1] * 70 + [1, 0] * 30)
    (found,) = advice.about_val_and_test(good, bad)
    assert "95.0 % of the validation images" in found.text
    assert "70.0 % of the test images" in found.text
    assert advice.about_val_and_test(bad, good) == []
    assert advice.about_val_and_test(good, good) == []
    luck = evaluation(("a", "b"), [0, 1] * 5, [0, 1] * 4 + [1, 0])
    assert advice.about_val_and_test(good, luck) == []


def history(losses: Sequence[float], validation: Sequence[float], phase: str = "fine-tune") -> list[dict[str, Any]]:
    return [
        {"phase": phase, "loss": loss, "val_loss": val_loss, "val_accuracy": 0.5}
        for loss, val_loss in zip(losses, validation, strict=True)
    ]


def test_the_losses_tell_overfitting_underfitting_and_a_training_cut_short() -> None:
    def said(rows: list[dict[str, Any]]) -> list[str]:
        return [one.text.split(":")[0] for one in advice.about_fit(rows, None, 10)]

    assert said(history([1, 0.4, 0.1, 0.05, 0.02], [1.5, 1.1, 1.0, 1.2, 1.4])) == ["Reduce overfitting"]
    assert said(history([2.2, 2.1, 2.05, 2.04, 2.04], [2.2, 2.1, 2.05, 2.04, 2.04])) == ["Reduce underfitting"]
    assert said(history([2, 1.5, 1.2, 0.9, 0.6], [2, 1.5, 1.2, 0.9, 0.6])) == ["Train longer"]
    assert said(history([1, 0.5, 0.4, 0.35, 0.34], [1, 0.5, 0.42, 0.4, 0.4])) == []
    assert said(history([1, 0.5], [1, 0.5])) == []
    # Only the last phase counts: the head's losses say nothing about the fine-tuning.
    before = history([1, 0.4, 0.1, 0.05, 0.02], [1.5, 1.1, 1.0, 1.2, 1.4], "head")
    after = history([0.5, 0.45, 0.42, 0.41], [0.5, 0.46, 0.43, 0.43])
    assert said(before + after) == []
    (useless,) = advice.about_fit(before + after, 2, 10)
    assert useless.text.startswith("Fine-tuning did not help")
    assert advice.about_fit(before + after, 8, 10) == []


def test_scores_that_promise_too_much_or_too_little_are_named() -> None:
    truth = [0, 1] * 100
    sure = evaluation(("a", "b"), truth, [0, 1] * 60 + [1, 0] * 40, top=0.95)
    modest = evaluation(("a", "b"), truth, truth, top=0.6)
    honest = evaluation(("a", "b"), truth, [0, 1] * 80 + [1, 0] * 20, top=0.8)
    assert "overconfident, by 35.0 %" in advice.about_calibration(sure)[0].text
    assert "underconfident" in advice.about_calibration(modest)[0].text
    assert advice.about_calibration(honest) == []
    # Four images cannot show it.
    assert advice.about_calibration(evaluation(("a", "b"), [0, 1, 0, 1], [0, 1, 1, 1], top=0.95)) == []


def test_a_training_that_lost_against_a_plain_head_is_told() -> None:
    found = DataSize((Point(100, 0.9, 0.0),), (), 100, 200)
    worse = evaluation(("a", "b"), [0, 1] * 100, [0, 1] * 75 + [1, 0] * 25)
    (told,) = advice.about_head(found, worse)
    assert "90.0 %" in told.text
    assert "75.0 %" in told.text
    assert told.stake == pytest.approx(0.15)
    assert advice.about_head(found, evaluation(("a", "b"), [0, 1] * 100, [0, 1] * 89 + [1, 0] * 11)) == []


def test_findings_become_advice_and_leaks_come_first() -> None:
    leak = Finding("leak", "leaked", (("test/0/0.jpg", "train/0/1.jpg"),))
    elsewhere = Finding("leak", "left out elsewhere", (("test/0/0.jpg", "train/9/9.jpg"),))
    label = Finding("label", "2 of 26 labels look wrong", (("train/0/0.jpg",), ("train/0/1.jpg",)))
    small = Finding("small", "3 images are small", (("train/0/2.jpg",),))
    copies = Finding("copies", "1 image left out", (("train/0/0.jpg", "gone.jpg"),))

    def said(*findings: Finding) -> list[str]:
        return [one.text for one in summary.advice_for(story(findings=findings))]

    assert said(leak)[0].startswith("Test on images the training has not seen")
    assert said(small, label, leak)[0].startswith("Test on images the training has not seen")
    assert "2 of 26 labels look wrong." in said(label)
    assert "3 images are small." in said(small)
    assert said(copies) == said() == said(elsewhere)  # the copies that leaked are no longer in the data
    assert summary.doubts(story(findings=(elsewhere,))) == []


def test_advice_is_ordered_by_what_it_may_win() -> None:
    found = summary.advice_for(story(("owl", "robin", "wren"), train=20, tests=20, wrong=9))
    assert len(found) >= 2
    assert [one.stake for one in found] == sorted((one.stake for one in found), reverse=True)


# --- metrics.json ---


def test_metrics_hold_what_the_documents_promise() -> None:
    features = np.random.default_rng(0).normal(size=(26 * 4, 8)).astype(np.float32)
    what = story(train=32, tests=20, wrong=4, features=features, temperature=1.5)
    found = json.loads(json.dumps(figures(replace(what, val=what.test))))
    assert found.keys() == {"test", "val", "temperature", "learning_curve", "more_pictures", "advice"}
    assert found["test"]["pictures"] == 40
    assert found["test"]["accuracy"] == 0.8
    assert found["test"]["per_class"] == {"owl": 0.8, "robin": 0.8}
    assert found["test"]["precision"] == {"owl": 0.8, "robin": 0.8}
    assert found["test"]["support"] == {"owl": 20, "robin": 20}
    assert found["test"]["confusion"] == [[16, 4], [4, 16]]
    assert found["test"]["confused_pairs"] == [["owl", "robin", 4], ["robin", "owl", 4]]
    assert found["test"]["interval_95"] == pytest.approx([0.652, 0.895], abs=1e-3)
    assert found["learning_curve"][-1]["train_pictures"] == 64
    assert found["more_pictures"][0]["train_pictures"] == 128
    assert figures(story()).keys() == {"test", "advice"}


def test_taking_the_temperature_away_gives_the_scores_before() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(50, 4))
    warm, cold = (np.exp(logits / t) / np.exp(logits / t).sum(axis=1, keepdims=True) for t in (2.5, 1.0))
    after = Evaluation(("a", "b", "c", "d"), logits.argmax(axis=1), warm.astype(np.float32))
    assert without_temperature(after, 2.5).scores == pytest.approx(cold, abs=1e-5)
