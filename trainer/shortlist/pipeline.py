"""A folder to review, made of the most worthwhile frames of a store of very many."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from rich.console import Console

from edge_agent.atomic_files import link_or_copy, replacing
from edge_agent.errors import DataError

from ..active_learning.annotations import Annotations
from ..active_learning.captured_frames import images_of
from ..active_learning.embeddings import network_of
from ..active_learning.training_set import training_images
from .chunk_tasks import ChunkEmbeddings, Part, looking
from .chunks import Chunk, chunks_of, tidy
from .executor import Spread
from .ranking import Ranking, rank

LIST = "shortlist.csv"
WORK = ".seen"
"""In the folder that is made; folders whose names begin with a dot are not looked into for images."""


@dataclass(frozen=True)
class Shortlist:
    """What came of it.

    Attributes:
        images: in the store.
        copies: of these, with the content of another.
        failed: of these, that could not be looked at.
        labelled: of these, with a decision already.
        picks: put on the list.
        likes: put beside them.
        stand_for: frames that are like a pick.
        problems: what was wrong with images and their lines, and with the logs of decisions.
    """

    images: int
    copies: int
    failed: int
    labelled: int
    picks: int
    likes: int
    stand_for: int
    problems: tuple[str, ...]


def make_shortlist(
    store: Path,
    out: Path,
    *,
    run: Path | None,
    count: int,
    likes: int,
    spread: Spread,
    console: Console,
    cache: Path | None = None,
) -> Shortlist:
    """Put the most worthwhile frames of a store into a folder, beside what is there.

    Frames with a decision in the store's log or in the folder's are not put there again, and what is like them is
    worth little.

    Args:
        store: folder of captures; every worker has to find it at this path, and ``out``, too.
        out: folder that is made or added to.
        run: whose model is to get better; None for EfficientNet-Lite0 as ImageNet taught it.
        count: most picks.
        likes: most frames put beside each pick that are like it.
        spread: does the passes.
        console: for the progress.
        cache: where what the network sees in training images is kept.

    Raises:
        DataError: no usable store, run, log or folder.
    """
    store, out = store.resolve(), out.resolve()
    run = None if run is None else run.resolve()
    if out == store or out.is_relative_to(store) or store.is_relative_to(out):
        raise DataError(f"{out}: in the store, or around it; name a folder beside it")
    with console.status("Looking through the folder"):
        names = images_of(store)
        work = out / WORK
        try:
            work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{out}: cannot be made: {error.strerror}; name another --out") from error
        logs = [Annotations(store), Annotations(out)]
    with console.status("Loading the model"):
        network = network_of(run)
    known, _ = training_images(network, run, console, cache)
    chunks = chunks_of(store, names, network.key)
    seen = spread(partial(looking, work, store, run), chunks, "Looking at the frames", loads=True)
    problems = tuple(chain.from_iterable((*(log.problems for log in logs), *(one.problems for one in seen))))
    failed = sum(int(one.failed.sum()) for one in seen)
    if failed == len(names):
        raise DataError(f"{store}: none of the {failed} images can be read, first: {problems[0]}")
    parts, labelled = _parts(chunks, seen, logs)
    ranking = rank(work, parts, known, count, spread)
    try:
        put = _put(store, out, names, ranking, likes)
        _write_list(out, names, seen, ranking, network.labels)
    except OSError as error:
        raise DataError(f"{out}: {error.strerror}; make room, or name another --out") from error
    tidy(work, chunks)
    return Shortlist(
        images=len(names),
        copies=len(names) - failed - sum(int(part.usable.sum()) for part in parts),
        failed=failed,
        labelled=labelled,
        picks=len(ranking.numbers),
        likes=put - len(ranking.numbers),
        stand_for=sum(len(some) for some in ranking.likes),
        problems=problems,
    )


def _parts(
    chunks: Sequence[Chunk], seen: Sequence[ChunkEmbeddings], logs: Sequence[Annotations]
) -> tuple[list[Part], int]:
    """Which frames are usable, each content once, and may be asked; and how many of them have a decision."""
    hashes = np.ascontiguousarray(np.concatenate([one.hashes for one in seen])).view("V32")[:, 0]
    good = np.flatnonzero(~np.concatenate([one.failed for one in seen]))
    usable = np.zeros(len(hashes), np.bool_)
    usable[good[np.unique(hashes[good], return_index=True)[1]]] = True
    settled = [bytes.fromhex(sha256) for log in logs for sha256, one in log.latest.items() if one.verdict != "open"]
    decided = np.isin(hashes, np.frombuffer(b"".join(settled), "V32"))
    ends = np.cumsum([len(chunk.paths) for chunk in chunks])[:-1]
    parts = [
        Part(chunk.name, some, some & ~of_these)
        for chunk, some, of_these in zip(chunks, np.split(usable, ends), np.split(decided, ends), strict=True)
    ]
    return parts, int((usable & decided).sum())


def _put(store: Path, out: Path, names: Sequence[str], ranking: Ranking, likes: int) -> int:
    """Images, and the lines beside them, to the folder; how many images."""
    wanted = [
        int(number)
        for pick, some in zip(ranking.numbers, ranking.likes, strict=True)
        for number in (pick, *some[:likes])
    ]
    for number in wanted:
        source, target = store / names[number], out / names[number]
        target.parent.mkdir(parents=True, exist_ok=True)
        line = source.with_suffix(".json")
        if line.exists():
            link_or_copy(line, target.with_suffix(".json"))
        link_or_copy(source, target)
    return len(wanted)


def _write_list(
    out: Path, names: Sequence[str], seen: Sequence[ChunkEmbeddings], ranking: Ranking, labels: Sequence[str]
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("rank", "path", "sha256", "guess", "score", "worth", "alike"))
    hashes, guess, score = (np.concatenate([getattr(one, of) for one in seen]) for of in ("hashes", "guess", "score"))
    for place, (number, worth, some) in enumerate(zip(ranking.numbers, ranking.worth, ranking.likes, strict=True), 1):
        guessed = (labels[guess[number]], f"{score[number]:.3f}") if labels else ("", "")
        writer.writerow((place, names[number], hashes[number].tobytes().hex(), *guessed, f"{worth:.4g}", len(some)))
    with replacing(out / LIST) as file:
        file.write(text.getvalue().encode())
