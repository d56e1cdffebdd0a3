"""What a report is about: one training, or one evaluation of a finished model."""

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
    """Everything a report tells. What is left out, it does not speak of.

    Attributes:
        dataset: the images; of its pixels only those shown are read.
        tested: places of the test images in the dataset.
        test: what the model said of them, in that order.
        val: what it said of the validation images.
        history: a row an epoch with ``phase``, ``loss``, ``val_loss``, ``val_accuracy``; others are ignored.
        kept: the row of ``history`` whose weights the model has.
        temperature: what the logits were divided by (Guo et al. 2017); it is in the model and in ``test`` already.
        features: (photos, features) float32, the frozen backbone's, of every image; may be memory-mapped.
        model: from pixels to softmax. Where its layer ``features`` is a global average pooling, activation maps show.
        recipe: how it was trained, name to value, in the order to show.
        took_s: wall time of the training, seconds.
        channels: order of the channels of ``dataset.pixels``.
        subject: what was tested, for the title.
        doubts: what stands against taking the figures as they are, beside what the dataset's findings say.
        footnote: a last sentence.
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
        """The class names."""
        return self.test.labels

    def photo(self, place: int) -> Photo:
        """The photo behind test image ``place``."""
        return self.dataset.photos[int(self.tested[place])]

    @cached_property
    def counts(self) -> dict[str, Counter[str]]:
        """Images of each class, by split."""
        counts: dict[str, Counter[str]] = {}
        for photo in self.dataset.photos:
            counts.setdefault(photo.split, Counter())[photo.label] += 1
        return counts

    @cached_property
    def data_size(self) -> DataSize | None:
        """Whether enough was labelled; takes some seconds the first time. None without features."""
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
