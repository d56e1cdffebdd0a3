"""A training that is not finished yet: what is kept beside the run to be, so that `--resume` can go on.

Every epoch replaces `checkpoint.npz` in one rename. A kill at any instant costs the epoch it hit.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.atomic_files import replacing
from edge_agent.errors import DataError

Weights = list[npt.NDArray[Any]]
MIN_JUDGES = 3
"""Validation images below which nothing can be told."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Where a training stands.

    Attributes:
        epoch: fine-tuning epochs done; 0 right after the head.
        history: a row an epoch of either phase: phase, loss, val_loss, val_accuracy, learning_rate.
        best: the classifier's best weights so far: of the latest epoch that validation cannot tell from the one of
            the lowest loss. A few images can tell little, and later epochs are the better ones on average.
        best_epoch: when that was; 0 is the head alone.
        lowest: (validation images,) their losses, at the fitted temperature, in the epoch of the lowest mean.
        state: every variable of the model in training and of its optimizer, in their order; empty before the
            first epoch.
    """

    epoch: int
    history: tuple[Mapping[str, Any], ...]
    best: Weights
    lowest: npt.NDArray[np.float64]
    best_epoch: int = 0
    state: Weights = field(default_factory=list)

    @property
    def epochs_since_best(self) -> int:
        """Fine-tuning epochs that brought nothing."""
        return self.epoch - self.best_epoch

    def next_epoch(self, epochs: int) -> str:
        """The epoch in progress, of ``epochs``, and the last validation accuracy, for a progress bar."""
        accuracy = [f", validation {100 * row['val_accuracy']:.1f} %" for row in self.history[-1:]]
        return f"epoch {self.epoch + 1} of {epochs}" + "".join(accuracy)

    @property
    def kept(self) -> int:
        """Place in the history of the epoch whose weights are the best."""
        heads = len([row for row in self.history if row["phase"] == "head"])
        if self.best_epoch:
            return heads + self.best_epoch - 1
        return min(range(heads), key=lambda i: float(self.history[i]["val_loss"]))

    def after(
        self, epoch: int, row: Mapping[str, Any], losses: npt.NDArray[np.float64], state: Weights, weights: Weights
    ) -> Checkpoint:
        """The checkpoint one epoch later, with that epoch's row, validation losses, state and classifier weights."""
        lowest = min(self.lowest, losses, key=np.mean)
        later = replace(self, epoch=epoch, history=(*self.history, row), state=state, lowest=lowest)
        if not _clearly_worse(losses, lowest):
            later = replace(later, best=weights, best_epoch=epoch)
        return later


def _clearly_worse(losses: npt.NDArray[np.float64], lowest: npt.NDArray[np.float64]) -> bool:
    """Whether the losses of the same images are higher by more than the standard error of the mean difference.

    The one-standard-error rule of Breiman et al. 1984, Classification and Regression Trees, section 3.4.3.
    With 5 training images in each of 8 classes and 8 to validate with (`benchmarks/few_pictures.py`, 4 draws) the
    head recognised 27 % of the test images, the epoch of the lowest loss 29 %, the one chosen here 33 %; with 15
    and 24, 36, 44 and 48 %.
    """
    if not np.isfinite(losses).all():
        return True  # diverged
    difference = losses - lowest
    if len(difference) < MIN_JUDGES:
        return False
    return bool(difference.mean() > difference.std(ddof=1) / np.sqrt(len(difference)))


class Unfinished:
    """The folder of an unfinished training, held by this process alone while it is open."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint."""
        record = {"epoch": checkpoint.epoch, "history": checkpoint.history, "best_epoch": checkpoint.best_epoch}
        arrays = {f"best{i}": array for i, array in enumerate(checkpoint.best)}
        arrays |= {f"state{i}": array for i, array in enumerate(checkpoint.state)}
        with replacing(self.path / "checkpoint.npz") as file:
            np.savez(file, record=np.array(json.dumps(record)), lowest=checkpoint.lowest, **arrays)  # type: ignore[arg-type]  # numpy's stub

    def load(self) -> Checkpoint | None:
        """The last checkpoint, if there is one.

        Raises:
            DataError: it is damaged.
        """
        path = self.path / "checkpoint.npz"
        if not path.exists():
            return None
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                record, lowest = json.loads(str(arrays["record"])), arrays["lowest"]
                best, state = (
                    [arrays[f"{kind}{i}"] for i in range(sum(name.startswith(kind) for name in arrays.files))]
                    for kind in ("best", "state")
                )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: a damaged checkpoint ({error}); remove {self.path} and start anew") from error
        return Checkpoint(record["epoch"], tuple(record["history"]), best, lowest, record["best_epoch"], state)


def unfinished_path(out: Path) -> Path:
    """Where the unfinished training of the run ``out`` lies."""
    return out.with_name(f".{out.name}.unfinished")


def check_unfinished(out: Path, *, resume: bool) -> None:
    """Refuse what could not go on, or would overwrite; worth asking before the work.

    Raises:
        DataError: something to resume is missing; or there is something, and nobody said to resume it.
    """
    path = unfinished_path(out)
    if resume and not path.is_dir():
        raise DataError(f"{path}: nothing to resume; start without --resume")
    if path.exists() and not resume:
        raise DataError(f"{path}: a training of {out} was interrupted; go on with --resume, or remove that folder")


@contextmanager
def unfinished_training(out: Path, choices: Mapping[str, Any]) -> Iterator[Unfinished]:
    """Open, or make, the folder of ``out``'s unfinished training; remove it when the block ends well.

    Args:
        out: the run directory to be.
        choices: everything the result depends on, as JSON values.

    Raises:
        DataError: another process is at it, or it was begun with other choices; all of them are named.
    """
    path = unfinished_path(out)
    path.mkdir(parents=True, exist_ok=True)
    with (path / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"{path}: another process trains this run; wait for it, or name another --out") from error
        _check_choices(path / "choices.json", choices)
        yield Unfinished(path)
        shutil.rmtree(path)


def _check_choices(path: Path, choices: Mapping[str, Any]) -> None:
    if not path.exists():
        with replacing(path) as file:
            file.write(json.dumps(choices, indent=2).encode())
        return
    try:
        begun = json.loads(path.read_bytes())
        differing = [name for name in choices | begun if choices.get(name) != begun.get(name)]
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged ({error}); remove {path.parent} and start anew") from error
    if differing:
        said = ", ".join(f"{name} was {begun.get(name)}, is {choices.get(name)}" for name in differing)
        raise DataError(f"{path.parent}: begun with other choices: {said}; give the same, or remove that folder")
