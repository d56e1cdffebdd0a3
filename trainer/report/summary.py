"""Collects the advice of a report, the most important first, and the reasons to distrust the accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from trainer.data import Finding

from . import advice
from .advice import Advice
from .report_data import ReportData

MAX_ADVICE = 8


def advice_for(report: ReportData) -> list[Advice]:
    """Return at most `MAX_ADVICE` pieces of advice on what to do next, the one with the highest stake first."""
    test = report.test
    training = report.counts.get("train", Counter())
    found = [
        *about_findings(report),
        *advice.about_confused_pairs(test),
        *advice.about_weak_classes(test, training),
        *advice.about_imbalance(test, training),
        *advice.about_test_images(test),
        *advice.about_calibration(test),
    ]
    if report.val is not None:
        found += advice.about_val_and_test(report.val, test)
    if report.data_size is not None:
        found += advice.about_data_size(report.data_size, 1 - test.accuracy)
        found += advice.about_head(report.data_size, test)
    if report.history:
        found += advice.about_fit(report.history, report.kept, len(report.labels))
    return sorted(found, key=lambda one: -one.stake)[:MAX_ADVICE]


def doubts(report: ReportData) -> list[str]:
    """Return the reasons to distrust the accuracy, one sentence each. Return an empty list if there are none."""
    return [*report.doubts, *(finding.message for finding in doubtful_findings(report))]


def doubtful_findings(report: ReportData) -> list[Finding]:
    """Return the findings that make the accuracy doubtful.

    There are two kinds of such findings:

    - Related images, such as near duplicates, are in the test split and in another split.
    - Classes cannot be tested reliably because of their groups.
    """
    split = {photo.path: photo.split for photo in report.dataset.photos}
    return [
        finding
        for finding in report.dataset.findings
        if finding.kind == "groups"
        or (finding.kind == "leak" and any(_across(inside, split) for inside in finding.images))
    ]


def about_findings(report: ReportData) -> list[Advice]:
    """Return the advice that follows from the findings in the dataset."""
    doubtful = {finding.kind for finding in doubtful_findings(report)}
    found = []
    if "leak" in doubtful:
        text = (
            "Test on images the training has not seen: some test images are near duplicates of training or "
            "validation images. Keep each burst or place in one split, with a group column or --group-by."
        )
        found.append(Advice(text, 1.0))
    if "groups" in doubtful:
        text = (
            "Photograph on more occasions, on other days and at other places: some classes come from so few occasions "
            "that none is left for testing."
        )
        found.append(Advice(text, 0.9))
    for finding in report.dataset.findings:
        if finding.kind in ("label", "small"):
            share = len(finding.images) / max(1, len(report.dataset.photos))
            stake = share if finding.kind == "label" else share / 10
            found.append(Advice(f"{finding.message[:1].upper()}{finding.message[1:]}.", stake))
    return found


def _across(group: Sequence[str], split: Mapping[str, str]) -> bool:
    splits = {split[path] for path in group if path in split}  # copies were left out of the dataset
    return "test" in splits and len(splits) > 1
