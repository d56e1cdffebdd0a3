"""Stores checkpoints of an unfinished training run next to the future run directory, for `--resume`.

After every epoch `checkpoint.npz` is replaced by a single rename, so at most the current epoch is lost if the training
run is interrupted.
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
MIN_VALIDATION_IMAGES = 3
"""Minimum number of validation images that is needed to compare the losses of two epochs."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """State of a training run.

    Attributes:
        epoch: number of finished fine-tuning epochs; 0 after the training of the head.
        history: one row per epoch of both phases, head and fine-tuning, with ``phase``, ``loss``, ``val_loss``,
            ``val_accuracy`` and, for fine-tuning, ``learning_rate``.
        best: the classifier's best weights so far. They are the weights of the latest epoch that is not clearly worse
            than the epoch with the lowest validation loss. A small number of validation images cannot show which of
            two similar epochs is better, and on average the later one is.
        best_epoch: number of the fine-tuning epoch with these weights; 0 if they are the weights before fine-tuning.
        lowest: (validation images,) loss of each validation image at the fitted temperature, in the epoch with the
            lowest mean loss.
        state: all variables of the trained model and of its optimizer, in order; empty before the first fine-tuning
            epoch.
    """

    epoch: int
    history: tuple[Mapping[str, Any], ...]
    best: Weights
    lowest: npt.NDArray[np.float64]
    best_epoch: int = 0
    state: Weights = field(default_factory=list)

    @property
    def epochs_since_best(self) -> int:
        """Number of fine-tuning epochs after the best one."""
        return self.epoch - self.best_epoch

    def next_epoch(self, epochs: int) -> str:
        """Return text for the progress bar: the number of the current epoch, and the last validation accuracy.

        Args:
            epochs: maximum number of fine-tuning epochs.
        """
        accuracy = [f", validation {100 * row['val_accuracy']:.1f} %" for row in self.history[-1:]]
        return f"epoch {self.epoch + 1} of {epochs}" + "".join(accuracy)

    @property
    def kept(self) -> int:
        """Index in ``history`` of the epoch with the best weights."""
        heads = len([row for row in self.history if row["phase"] == "head"])
        if self.best_epoch:
            return heads + self.best_epoch - 1
        return min(range(heads), key=lambda i: float(self.history[i]["val_loss"]))

    def after(
        self, epoch: int, row: Mapping[str, Any], losses: npt.NDArray[np.float64], state: Weights, weights: Weights
    ) -> Checkpoint:
        """Return the checkpoint after one more epoch.

        Args:
            epoch: number of finished fine-tuning epochs, including the new one.
            row: row of the new epoch for the history.
            losses: (validation images,) loss of each validation image at the fitted temperature.
            state: variables of the model and its optimizer.
            weights: weights of the classifier.
        """
        lowest = min(self.lowest, losses, key=np.mean)
        later = replace(self, epoch=epoch, history=(*self.history, row), state=state, lowest=lowest)
        if not _clearly_worse(losses, lowest):
            later = replace(later, best=weights, best_epoch=epoch)
        return later


def _clearly_worse(losses: npt.NDArray[np.float64], lowest: npt.NDArray[np.float64]) -> bool:
    """Return True if ``losses`` is higher than ``lowest`` by more than the standard error of the mean difference.

    Both arrays contain the losses of the same images. This is the one-standard-error rule of Breiman et al. 1984,
    Classification and Regression Trees, section 3.4.3.

    Test accuracies with 8 classes (`benchmarks/few_pictures.py`, 4 draws) were:

    - With 5 training images per class and 8 validation images: 27 % for the head alone, 29 % for the epoch with the
      lowest loss, and 33 % for the epoch chosen by this rule.
    - With 15 training images per class and 24 validation images: 36 %, 44 % and 48 %.
    """
    if not np.isfinite(losses).all():
        return True  # diverged
    difference = losses - lowest
    if len(difference) < MIN_VALIDATION_IMAGES:
        return False
    return bool(difference.mean() > difference.std(ddof=1) / np.sqrt(len(difference)))


class Unfinished:
    """The folder of an unfinished training run. `unfinished_training` holds a lock on it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, checkpoint: Checkpoint) -> None:
        """Store a checkpoint in place of the previous one."""
        record = {"epoch": checkpoint.epoch, "history": checkpoint.history, "best_epoch": checkpoint.best_epoch}
        arrays = {f"best{i}": array for i, array in enumerate(checkpoint.best)}
        arrays |= {f"state{i}": array for i, array in enumerate(checkpoint.state)}
        with replacing(self.path / "checkpoint.npz") as file:
            np.savez(file, record=np.array(json.dumps(record)), lowest=checkpoint.lowest, **arrays)  # type: ignore[arg-type]  # numpy's stub

    def load(self) -> Checkpoint | None:
        """Return the last checkpoint, or None if there is none.

        Raises:
            DataError: the checkpoint is damaged.
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
            raise DataError(f"{path}: damaged checkpoint ({error}); delete {self.path} and start again") from error
        return Checkpoint(record["epoch"], tuple(record["history"]), best, lowest, record["best_epoch"], state)


def unfinished_path(out: Path) -> Path:
    """Return the folder that is used while the run ``out`` is being trained."""
    return out.with_name(f".{out.name}.unfinished")


def check_unfinished(out: Path, *, resume: bool) -> None:
    """Check that an unfinished training run exists if and only if ``resume`` is True. Call this before the work starts.

    Raises:
        DataError: ``resume`` is True and there is nothing to resume, or ``resume`` is False and there is an unfinished
            training run.
    """
    path = unfinished_path(out)
    if resume and not path.is_dir():
        raise DataError(f"{path}: nothing to resume; start without --resume")
    if path.exists() and not resume:
        raise DataError(f"{path}: a training of {out} was interrupted; continue with --resume, or delete this folder")


@contextmanager
def unfinished_training(out: Path, choices: Mapping[str, Any]) -> Iterator[Unfinished]:
    """Open or create the folder of the unfinished training run ``out``.

    The folder is locked for this process. It is deleted when the block ends without an error.

    Args:
        out: the future run directory.
        choices: all options that affect the result, as JSON values.

    Raises:
        DataError: another process is training this run, or the training run was started with different options. The
            message names all of these options.
    """
    path = unfinished_path(out)
    path.mkdir(parents=True, exist_ok=True)
    with (path / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"{path}: another process trains this run; wait for it, or give another --out") from error
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
        raise DataError(f"{path}: damaged ({error}); delete {path.parent} and start again") from error
    if differing:
        changes = ", ".join(f"{name} was {begun.get(name)}, is {choices.get(name)}" for name in differing)
        raise DataError(
            f"{path.parent}: started with other options: {changes}; give the same options, or delete this folder"
        )
