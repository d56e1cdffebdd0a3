"""A model ready to run on this device: its bundle, its interpreter, and when its labels are decided."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..bundle import Bundle, open_bundle
from ..bundle.manifest import Thresholds
from ..config import DecisionSettings, Settings
from ..inference.classifier import Classifier
from ..inference.decision import ClassRule, Rules
from ..messages import ModelId

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """What the agent runs.

    Attributes:
        bundle: verified.
        classifier: loaded from it; for one thread at a time.
        rules: when a label is decided.
    """

    bundle: Bundle
    classifier: Classifier
    rules: Rules

    @property
    def id(self) -> ModelId:
        """Name, version and digest, for messages."""
        manifest = self.bundle.manifest
        return ModelId(manifest.name, manifest.version, self.bundle.digest)


def load_model(path: Path, settings: Settings) -> LoadedModel:
    """Open a bundle, file or directory, and load its model as agent.yaml wants it.

    A delegate that cannot be used is logged, and the model runs on the CPU: a device whose accelerator has gone still
    does its work.

    Raises:
        BundleError, ModelError: the bundle or its model cannot be used.
    """
    bundle = open_bundle(path)
    classifier = Classifier.from_bundle(
        bundle,
        threads=settings.threads,
        delegate=settings.delegate,
        on_cpu_instead=lambda error: log.warning("%s. Running on the CPU instead", error),
    )
    return LoadedModel(bundle, classifier, rules_of(bundle.manifest.thresholds, settings.decision, bundle.labels))


def rules_of(thresholds: Thresholds, settings: DecisionSettings, labels: Sequence[str] = ()) -> Rules:
    """The device's settings, with the bundle's thresholds where they leave one out.

    Labels the model does not know are logged and passed over: the settings outlive many a model.
    """
    enter = thresholds.enter if settings.enter is None else settings.enter
    leave = thresholds.leave if settings.leave is None else settings.leave
    common = ClassRule(enter, min(leave, enter), settings.min_time_s)
    classes = {}
    for label, own in settings.classes.items():
        if label not in labels:
            log.warning("decision.classes: the model has no label %r; it has %s", label, ", ".join(labels))
            continue
        own_enter = common.enter if own.enter is None else own.enter
        own_leave = common.leave if own.leave is None else own.leave
        # A threshold that is not given follows the one that is: leave is never above enter.
        own_enter = max(own_enter, own_leave) if own.enter is None else own_enter
        min_time_s = common.min_time_s if own.min_time_s is None else own.min_time_s
        classes[labels.index(label)] = ClassRule(own_enter, min(own_leave, own_enter), min_time_s)
    return Rules(common.enter, common.leave, common.min_time_s, settings.smoothing_s, classes)
