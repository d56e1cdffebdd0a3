"""Input of a report: the results of one training, or of one evaluation of a finished model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from edge_agent.inference.evaluation import Evaluation
from trainer.data import Dataset, Photo

from .learning_curve import DataSize, learn_from_shares

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportData:
    """Everything a report shows. Sections without data are left out.

    Attributes:
        dataset: all images; only the pixels of images that are shown are read.
        tested: indices of the test images in the dataset.
        test: the model's scores on the test images, in the same order.
        val: the model's scores on the validation images.
        history: one row per epoch with ``phase``, ``loss``, ``val_loss``, ``val_accuracy``; other keys are ignored.
        kept: index of the row of ``history`` whose weights the model has.
        temperature: divisor of the logits (Guo et al. 2017); the model and ``test`` already include it.
        features: (photos, features) float32, the frozen backbone's features of every image; may be memory-mapped.
        model: maps pixels to softmax scores. Activation maps are shown if its layer ``features`` is a global average
            pooling.
        recipe: training settings, name to value, in display order.
        took_s: wall time of the training, in seconds.
        channels: channel order of ``dataset.pixels``.
        subject: what was tested, for the title.
        doubts: reasons to distrust the figures, in addition to the dataset's findings; one sentence each.
        footnote: last sentence of the report.
    """

    dataset: Dataset
    tested: Sequence[int] | npt.NDArray[np.intp]
    test: Evaluation
    val: Evaluation | None = None
    history: Sequence[Mapping[str, Any]] = ()
    kept: int | None = None
    temperature: float | None = None
    features: npt.NDArray[np.float32] | None = None
    model: keras.Model | None = None
    recipe: Mapping[str, object] = field(default_factory=dict)
    took_s: float | None = None
    channels: Literal["rgb", "bgr"] = "rgb"
    subject: str = "training"
    doubts: Sequence[str] = ()
    footnote: str = "These are the figures of the float model; edgeloop convert measures the int8 one."

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, in the order of the scores."""
        return self.test.labels

    def photo(self, position: int) -> Photo:
        """Return the photo of the test image at index ``position`` of ``tested``."""
        return self.dataset.photos[int(self.tested[position])]

    @cached_property
    def counts(self) -> dict[str, Counter[str]]:
        """Numbers of images of each class, by split."""
        counts: dict[str, Counter[str]] = {}
        for photo in self.dataset.photos:
            counts.setdefault(photo.split, Counter())[photo.label] += 1
        return counts

    @cached_property
    def data_size(self) -> DataSize | None:
        """Learning curve over the number of training images; None without features.

        The first access takes a few seconds.
        """
        training = [i for i, photo in enumerate(self.dataset.photos) if photo.split == "train"]
        if self.features is None or not training:
            return None
        index = {label: i for i, label in enumerate(self.labels)}
        photos = [self.dataset.photos[i] for i in training]
        return learn_from_shares(
            self.features,
            train=np.array(training, np.intp),
            train_truth=np.array([index[photo.label] for photo in photos], np.intp),
            groups=[photo.group for photo in photos],
            tested=np.asarray(self.tested, np.intp),
            test_truth=self.test.truth,
            classes=len(self.labels),
        )
