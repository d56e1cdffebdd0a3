"""Compares labelling the frames that `edgeloop review` proposes with labelling random frames, by the accuracy gained.

    python -m benchmarks.label_budget STAMPS [--draws 8] [--plot FILE.png]

STAMPS is an unpacked Debian package, see benchmarks/support/synthetic_images.py.

A model was trained on eight classes of photographed objects on three backgrounds. It is then used in a changed scene:
other objects of the same classes, other backgrounds, darker light with another tint, and a blurred and noisy camera.
The device has captured 2,000 frames of this scene. Each object moves, and appears for 5 to 24 frames at a time. A few
objects appear often and most of them rarely: the k-th most frequent object appears 1/k as often as the first.

Three ways of selecting the frames to label are compared:

- Random frames.
- Frames that `propose` selects, ten at a time. The head is trained again after each ten, as on the review page.
- The same as before, and in addition the frames that are similar to each proposed frame. The review page shows the
  similar frames next to the proposed one, and gives all of them the same label.

Heads are trained on the old images and the labelled frames, and tested on other frames of the changed scene, with the
same number of frames of each class. All parameters of the method were tuned with other classes of the package (clothes,
music, christmas, halloween, roadsigns, vehicles, money, planets) and with other draws.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from edge_agent.preprocessing import Pixels, preprocess
from trainer.active_learning.embeddings import Network, load_network
from trainer.active_learning.feature_space import (
    Floats,
    Indices,
    Space,
    build_space,
    distances_to_known,
    squared_distances,
)
from trainer.active_learning.ranking import fit_head, propose, uncertainty
from trainer.review.session import ROUND

from .support.figures import record
from .support.synthetic_images import CLASSES, backgrounds, cut_outs

POOL, TRAIN, TEST = 2000, 60, 40
"""Number of captured frames, number of old images per class, and number of test frames per class."""
BUDGETS = (0.01, 0.025, 0.05, 0.1)
SHAPE = 360, 640
FIRST_DRAW = 100


@dataclass(frozen=True)
class Scene:
    """Conditions in which frames are taken.

    Attributes:
        split: split whose backgrounds are used.
        light: factor for the brightness.
        tint: factors for the blue, green and red channels.
        blur: standard deviation of the Gaussian blur, in pixels; 0 for a sharp image.
        noise: standard deviation of the noise, in pixel values.
    """

    split: str
    light: float = 1.0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    blur: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True, eq=False)
class Draw:
    """Features and classes of the old images, the captured frames (``pool``) and the test frames."""

    old: tuple[Floats, Indices]
    pool: tuple[Floats, Indices]
    test: tuple[Floats, Indices]


def photographed(thing: Path, scene: Scene, place: Sequence[float], background: Pixels, random: Any) -> Pixels:
    """Return a frame with an object on a background.

    Args:
        thing: image file of the cut-out object.
        scene: light and camera.
        place: horizontal and vertical position of the object, each 0 to 1, and the length of the object's longer side
            relative to the height of the frame.
        background: image behind the object.
        random: random number generator.
    """
    rows, columns = SHAPE
    across, down, size = place
    frame = cv2.resize(background, (columns, rows), interpolation=cv2.INTER_AREA).astype(np.float32)
    whole = _cut_out(thing)
    scale = size * rows / max(whole.shape[:2])
    cut = cv2.resize(whole, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA).astype(np.float32)
    height, width = cut.shape[:2]
    left, top = round(across * (columns - width)), round(down * (rows - height))
    alpha = cut[..., 3:] / 255
    area = frame[top : top + height, left : left + width]
    area[...] = alpha * cut[..., :3] + (1 - alpha) * area
    frame *= scene.light * random.uniform(0.85, 1.15) * np.array(scene.tint, np.float32)
    if scene.blur:
        frame = cv2.GaussianBlur(frame, (0, 0), scene.blur).astype(np.float32)
    noisy: Pixels = np.clip(frame + random.normal(0, scene.noise, frame.shape), 0, 255).astype(np.uint8)
    return noisy


def burst(thing: Path, count: int, scene: Scene, random: Any) -> list[Pixels]:
    """Return consecutive frames of one moving object, on a random background."""
    behind = backgrounds(scene.split)
    background = behind[int(random.integers(len(behind)))]
    place, step = np.array([random.random(), random.random(), random.uniform(0.35, 0.8)]), random.normal(0, 0.02, 3)
    frames = []
    for _ in range(count):
        place = np.clip(place + step + random.normal(0, 0.01, 3), (0, 0, 0.3), (1, 1, 0.85))
        frames.append(photographed(thing, scene, place, background, random))
    return frames


def draw(stamps: Path, network: Network, seed: int) -> Draw:
    random = np.random.default_rng(seed)
    tint = (random.uniform(0.7, 0.9), 1.0, random.uniform(0.9, 1.15))
    changed = Scene("test", random.uniform(0.45, 0.75), tint, random.uniform(0.8, 1.6), 6.0)
    old: list[tuple[Pixels, int]] = []
    test: list[tuple[Pixels, int]] = []
    things: list[tuple[Path, int]] = []
    for place, label in enumerate(CLASSES):
        objects = [path for path in cut_outs(stamps, label) if _cut_out(path).shape[2:] == (4,)]
        objects = [objects[i] for i in random.permutation(len(objects))]
        new = objects[: min(6, max(3, len(objects) // 3))]
        things += [(thing, place) for thing in new]
        for _ in range(TRAIN):
            thing = objects[int(random.integers(len(new), len(objects)))]
            old += [(frame, place) for frame in burst(thing, 1, Scene("train"), random)]
        for _ in range(TEST):
            test += [(frame, place) for frame in burst(new[int(random.integers(len(new)))], 1, changed, random)]
    things = [things[i] for i in random.permutation(len(things))]
    often = 1 / np.arange(1, len(things) + 1)
    pool: list[tuple[Pixels, int]] = []
    while len(pool) < POOL:
        thing, place = things[int(random.choice(len(things), p=often / often.sum()))]
        pool += [(frame, place) for frame in burst(thing, int(random.integers(5, 25)), changed, random)]
    return Draw(*(_embedded(network, some) for some in (old, pool[:POOL], test)))


def gains(drawn: Draw, seed: int) -> Mapping[str, list[float]]:
    """Return the accuracy gained at each budget, in points, for each way of selecting frames.

    The key "before" has the accuracy without any labelled frames, in %.
    """
    count = len(drawn.pool[0])
    # The test frames are projected into the space, but do not influence how it is built.
    space = build_space(drawn.pool[0], drawn.old[0])
    test_rows = space.projection.project(drawn.test[0])
    budgets = [round(share * count) for share in BUDGETS]

    def accuracy(chosen: Sequence[int], labels: Sequence[int]) -> float:
        rows = np.concatenate([space.known, space.frames[np.array(chosen, np.intp)]])
        head = fit_head(rows, np.concatenate([drawn.old[1], np.array(labels, np.intp)]))
        assert head is not None
        return 100 * float((head.scores(test_rows, len(CLASSES)).argmax(axis=1) == drawn.test[1]).mean())

    before = accuracy([], [])
    at_random = []
    for budget in budgets:
        picks = [np.random.default_rng((seed, again)).permutation(count)[:budget].tolist() for again in range(5)]
        at_random.append(float(np.mean([accuracy(pick, drawn.pool[1][pick].tolist()) for pick in picks])) - before)
    found = {"before": [before], "at random": at_random}
    for name, with_similar in (("proposed", False), ("proposed, with similar frames", True)):
        labelled = proposed(space, drawn, budgets, with_similar=with_similar)
        found[name] = [accuracy(*labelled[budget]) - before for budget in budgets]
    return found


def proposed(
    space: Space, drawn: Draw, budgets: Sequence[int], *, with_similar: bool
) -> dict[int, tuple[list[int], list[int]]]:
    """Label the frames that `propose` selects.

    Returns:
        For each number of annotations in ``budgets``, the frames labelled until then and the labels of these frames.
        One annotation labels one proposed frame and, if ``with_similar`` is True, also the frames similar to it.
    """
    nearest, is_open = distances_to_known(space.frames, space.known), np.ones(len(space.frames), np.bool_)
    head = fit_head(space.known, drawn.old[1])
    chosen: list[int] = []
    labels: list[int] = []
    kept, annotations = {}, 0
    while annotations < max(budgets):
        assert head is not None
        doubt = uncertainty(head.scores(space.frames, len(CLASSES)))
        for group in propose(space, doubt, nearest, is_open, min(ROUND, max(budgets) - annotations)):
            members = group if with_similar else group[:1]
            chosen += members.tolist()
            labels += [int(drawn.pool[1][group[0]])] * len(members)
            is_open[members] = False
            np.minimum(nearest, squared_distances(space.frames[group[:1]], space.frames)[0], out=nearest)
            annotations += 1
            if annotations in budgets:
                kept[annotations] = (list(chosen), list(labels))
        rows = np.concatenate([space.known, space.frames[chosen]])
        head = fit_head(rows, np.concatenate([drawn.old[1], np.array(labels, np.intp)]))
    return kept


def plot(path: Path, found: Sequence[Mapping[str, list[float]]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4.4), dpi=130)
    for name, colour in zip(list(found[0])[1:], ("#5a645d", "#1f7a5a", "#6b55b8"), strict=True):
        rows = np.array([one[name] for one in found])
        error = rows.std(axis=0, ddof=1) / np.sqrt(len(rows))
        shares = [100 * share for share in BUDGETS]
        axes.errorbar(shares, rows.mean(axis=0), error, label=name, color=colour, marker="o", capsize=3)
    axes.set(xlabel="annotations, % of the captured frames", ylabel="accuracy gained, points", xlim=(0, 10.5))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    axes.set_title(f"A changed scene: mean and standard error of {len(found)} draws", fontsize=11)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stamps", type=Path)
    parser.add_argument("--draws", type=int, default=8, help="at least 2")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    network, console = load_network(None), Console(stderr=True)
    seeds = range(FIRST_DRAW, FIRST_DRAW + arguments.draws)
    shown = track(seeds, "Drawing scenes", console=console)
    found = [gains(draw(arguments.stamps, network, seed), seed) for seed in shown]
    record("accuracy before", float(np.mean([one["before"] for one in found])), "%")
    for place, share in enumerate(BUDGETS):
        means = {name: np.array([one[name][place] for one in found]) for name in list(found[0])[1:]}
        for name, values in means.items():
            record(f"{100 * share:g} % labelled, {name}, gained", float(values.mean()), "points")
            print(f"  standard error {values.std(ddof=1) / np.sqrt(len(values)):.1f}")
        for name in list(means)[1:]:
            aim = 1.5 if share == 0.05 else None
            ratio = float(means[name].mean() / means["at random"].mean())
            record(f"{100 * share:g} % labelled, {name}, gain over at random", ratio, at_least=aim)
    if arguments.plot:
        plot(arguments.plot, found)


_cut_outs: dict[Path, npt.NDArray[np.uint8]] = {}


def _cut_out(path: Path) -> npt.NDArray[np.uint8]:
    if path not in _cut_outs:
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert image is not None
        _cut_outs[path] = np.asarray(image, np.uint8)
    return _cut_outs[path]


def _embedded(network: Network, frames: Sequence[tuple[Pixels, int]]) -> tuple[Floats, Indices]:
    features = []
    for start in range(0, len(frames), 32):
        batch = np.zeros((32, *network.spec.shape), np.float32)
        some = frames[start : start + 32]
        batch[: len(some)] = [preprocess(frame, network.spec) for frame, _ in some]
        features.append(np.asarray(network.model.predict_on_batch(batch)[0][: len(some)], np.float32))
    return np.concatenate(features), np.array([place for _, place in frames], np.intp)


if __name__ == "__main__":
    main()
