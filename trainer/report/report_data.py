"""Collects the input of a report: the results of one training run, or of one evaluation of a finished model."""

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
    """Everything that a report shows. The report leaves out sections for which there is no data.

    Attributes:
        dataset: all images. The report reads only the pixels of the images that it shows.
        tested: indices of the test images in the dataset.
        test: the model's scores for the test images, in the order of ``tested``.
        val: the model's scores for the validation images.
        history: one row per epoch with the keys ``phase``, ``loss``, ``val_loss`` and ``val_accuracy``, and optionally
            ``accuracy``; other keys are ignored.
        kept: index of the row of ``history`` for the epoch whose weights the model has.
        temperature: number by which the logits were divided (Guo et al. 2017). The scores of ``model``, ``test`` and
            ``val`` already include it.
        features: (images, features) float32, the frozen backbone's features of all images; may be memory-mapped.
        model: Keras model that maps pixels to softmax scores. The report shows activation maps if the layer
            ``features`` of the model is a global average pooling that one linear layer follows.
        recipe: names and values of the training settings, in the order in which the report shows them.
        took_s: wall time of the training run, in seconds.
        channels: channel order of ``dataset.pixels``.
        subject: name of what was tested, for the title.
        doubts: reasons to distrust the metrics, one sentence each, in addition to the findings of the dataset.
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
        """Return the dataset's entry for the test image at index ``position`` of ``tested``."""
        return self.dataset.photos[int(self.tested[position])]

    @cached_property
    def counts(self) -> dict[str, Counter[str]]:
        """Number of images by split and class."""
        counts: dict[str, Counter[str]] = {}
        for photo in self.dataset.photos:
            counts.setdefault(photo.split, Counter())[photo.label] += 1
        return counts

    @cached_property
    def data_size(self) -> DataSize | None:
        """Learning curve and forecasts; None if there are no features or no training images.

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
