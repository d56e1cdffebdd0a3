"""Build a folder to review from the most valuable frames of a large store of captures."""

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
from edge_agent.csv_cells import escaped
from edge_agent.errors import DataError

from ..active_learning.annotations import Annotations
from ..active_learning.captured_frames import images_of
from ..active_learning.embeddings import load_network
from ..active_learning.training_set import training_images
from .chunk_tasks import ChunkSummary, Part, chunk_embedder
from .chunks import Chunk, chunks_of, tidy
from .executor import Executor
from .ranking import Ranking, rank

LIST = "shortlist.csv"
WORK = ".seen"
"""Work folder inside the output folder; folders whose names begin with a dot are not searched for images."""


@dataclass(frozen=True)
class Shortlist:
    """Summary of a shortlist; all attributes but ``problems`` are numbers of images.

    Attributes:
        images: images in the store.
        copies: copies of other images.
        failed: images that could not be read.
        labelled: images that were annotated before.
        picks: images on the list.
        similar: similar frames added to the folder.
        represented: all frames that are similar to a pick.
        problems: messages about images, their metadata and the annotation logs.
    """

    images: int
    copies: int
    failed: int
    labelled: int
    picks: int
    similar: int
    represented: int
    problems: tuple[str, ...]


def make_shortlist(
    store: Path,
    out: Path,
    *,
    run: Path | None,
    count: int,
    similar: int,
    executor: Executor,
    console: Console,
    cache: Path | None = None,
) -> Shortlist:
    """Link or copy the most valuable frames of a store into a folder.

    Existing files in the folder are kept. Frames that are annotated in the log of the store or of the folder are not
    picked, and frames similar to them have a low value.

    Args:
        store: folder of captures; every worker needs it, ``out`` and ``run`` at the same path.
        out: output folder; created if it does not exist.
        run: run whose model should be improved; None for EfficientNet-Lite0 pretrained on ImageNet.
        count: maximum number of picks.
        similar: maximum number of similar frames to add for each pick.
        executor: executor of the passes over the chunks.
        console: console for the progress.
        cache: folder of the embeddings cache for the training images; the default one if None.

    Raises:
        DataError: the store, run, annotation log or folder is not usable.
    """
    store, out = store.resolve(), out.resolve()
    run = None if run is None else run.resolve()
    if out == store or out.is_relative_to(store) or store.is_relative_to(out):
        raise DataError(f"{out}: is inside the store or contains it; name a folder next to it")
    with console.status("Looking through the folder"):
        names = images_of(store)
        work = out / WORK
        try:
            work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{out}: cannot be created: {error.strerror}; name another --out") from error
        logs = [Annotations(store), Annotations(out)]
    with console.status("Loading the model"):
        network = load_network(run)
    known, _ = training_images(network, run, console, cache)
    chunks = chunks_of(store, names, network.key)
    summaries = executor(
        partial(chunk_embedder, work, store, run), chunks, "Computing embeddings of the frames", factory=True
    )
    problems = tuple(
        chain.from_iterable((*(log.problems for log in logs), *(summary.problems for summary in summaries)))
    )
    failed = sum(int(summary.failed.sum()) for summary in summaries)
    if failed == len(names):
        raise DataError(f"{store}: none of the {failed} images can be read, first: {problems[0]}")
    parts, labelled = _parts(chunks, summaries, logs)
    ranking = rank(work, parts, known, count, executor)
    try:
        added = _add_images(store, out, names, ranking, similar)
        _write_list(out, names, summaries, ranking, network.labels)
    except OSError as error:
        raise DataError(f"{out}: {error.strerror}; make room, or name another --out") from error
    tidy(work, chunks)
    return Shortlist(
        images=len(names),
        copies=len(names) - failed - sum(int(part.usable.sum()) for part in parts),
        failed=failed,
        labelled=labelled,
        picks=len(ranking.numbers),
        similar=added - len(ranking.numbers),
        represented=sum(len(frames) for frames in ranking.similar),
        problems=problems,
    )


def _parts(
    chunks: Sequence[Chunk], summaries: Sequence[ChunkSummary], logs: Sequence[Annotations]
) -> tuple[list[Part], int]:
    """Return the masks of the chunks, and the number of usable frames that are annotated."""
    hashes = np.ascontiguousarray(np.concatenate([summary.hashes for summary in summaries])).view("V32")[:, 0]
    good = np.flatnonzero(~np.concatenate([summary.failed for summary in summaries]))
    usable = np.zeros(len(hashes), np.bool_)
    usable[good[np.unique(hashes[good], return_index=True)[1]]] = True
    known = [bytes.fromhex(sha256) for log in logs for sha256, last in log.latest.items() if last.verdict != "open"]
    annotated = np.isin(hashes, np.frombuffer(b"".join(known), "V32"))
    ends = np.cumsum([len(chunk.paths) for chunk in chunks])[:-1]
    parts = [
        Part(chunk.name, in_chunk, in_chunk & ~excluded)
        for chunk, in_chunk, excluded in zip(chunks, np.split(usable, ends), np.split(annotated, ends), strict=True)
    ]
    return parts, int((usable & annotated).sum())


def _add_images(store: Path, out: Path, names: Sequence[str], ranking: Ranking, similar: int) -> int:
    """Link or copy images and their metadata into the folder, and return the number of images."""
    chosen = [
        int(number)
        for pick, frames in zip(ranking.numbers, ranking.similar, strict=True)
        for number in (pick, *frames[:similar])
    ]
    for number in chosen:
        source, target = store / names[number], out / names[number]
        target.parent.mkdir(parents=True, exist_ok=True)
        metadata = source.with_suffix(".json")
        if metadata.exists():
            link_or_copy(metadata, target.with_suffix(".json"))
        link_or_copy(source, target)
    return len(chosen)


def _write_list(
    out: Path, names: Sequence[str], summaries: Sequence[ChunkSummary], ranking: Ranking, labels: Sequence[str]
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("rank", "path", "sha256", "guess", "score", "worth", "alike"))
    hashes, guess, score = (
        np.concatenate([getattr(summary, name) for summary in summaries]) for name in ("hashes", "guess", "score")
    )
    ranked = zip(ranking.numbers, ranking.worth, ranking.similar, strict=True)
    for position, (number, worth, similar) in enumerate(ranked, 1):
        prediction = (labels[guess[number]], f"{score[number]:.3f}") if labels else ("", "")
        row = (position, names[number], hashes[number].tobytes().hex(), *prediction, f"{worth:.4g}", len(similar))
        writer.writerow(escaped(row))
    with replacing(out / LIST) as file:
        file.write(text.getvalue().encode())
