"""A model ready to run on this device: its bundle, its classifier and its decision rules."""

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
    """A model loaded for the agent.

    Attributes:
        bundle: The verified bundle.
        classifier: Classifier of the bundle's model. Only one thread at a time may use it.
        rules: Rules for deciding labels.
    """

    bundle: Bundle
    classifier: Classifier
    rules: Rules

    @property
    def id(self) -> ModelId:
        """Name, version and digest of the model, as sent in messages."""
        manifest = self.bundle.manifest
        return ModelId(manifest.name, manifest.version, self.bundle.digest)


def load_model(path: Path, settings: Settings) -> LoadedModel:
    """Open a bundle (a file or a directory), and load its model with the settings of agent.yaml.

    If the delegate cannot be used, this is logged and the model runs on the CPU, so that a device keeps working when
    its accelerator fails.

    Raises:
        BundleError, ModelError: The bundle or its model cannot be used.
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
    """Return the rules from the device's settings; thresholds that are not set there are taken from the bundle.

    Settings for labels that the model does not have are logged and ignored, because agent.yaml outlives models.
    """
    enter = thresholds.enter if settings.enter is None else settings.enter
    leave = thresholds.leave if settings.leave is None else settings.leave
    common = ClassRule(enter, min(leave, enter), settings.min_time_s)
    classes = {}
    for label, own in settings.classes.items():
        if label not in labels:
            log.warning(
                "decision.classes: ignoring %r, which is not a label of the model; expected one of %s",
                label,
                ", ".join(labels),
            )
            continue
        own_enter = common.enter if own.enter is None else own.enter
        own_leave = common.leave if own.leave is None else own.leave
        # If only one threshold is given, the other one is adjusted to it: leave must not be above enter.
        own_enter = max(own_enter, own_leave) if own.enter is None else own_enter
        min_time_s = common.min_time_s if own.min_time_s is None else own.min_time_s
        classes[labels.index(label)] = ClassRule(own_enter, min(own_leave, own_enter), min_time_s)
    return Rules(common.enter, common.leave, common.min_time_s, settings.smoothing_s, classes)
