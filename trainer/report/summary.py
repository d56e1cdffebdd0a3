"""A story's findings and advice, gathered from the pure functions and put in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from trainer.data import Finding

from . import advice
from .advice import Advice
from .report_data import ReportData

MAX_ADVICE = 8


def advice_for(story: ReportData) -> list[Advice]:
    """What to do next, what wins most first."""
    test = story.test
    training = story.counts.get("train", Counter())
    found = [
        *about_findings(story),
        *advice.about_confused_pairs(test),
        *advice.about_weak_classes(test, training),
        *advice.about_imbalance(test, training),
        *advice.about_test_images(test),
        *advice.about_calibration(test),
    ]
    if story.val is not None:
        found += advice.about_val_and_test(story.val, test)
    if story.data_size is not None:
        found += advice.about_data_size(story.data_size, 1 - test.accuracy)
        found += advice.about_head(story.data_size, test)
    if story.history:
        found += advice.about_fit(story.history, story.kept, len(story.labels))
    return sorted(found, key=lambda one: -one.stake)[:MAX_ADVICE]


def doubts(story: ReportData) -> list[str]:
    """What stands against taking the accuracy as it is: a sentence each, none for an honest test."""
    return [*story.doubts, *(finding.message for finding in doubtful_findings(story))]


def doubtful_findings(story: ReportData) -> list[Finding]:
    """Findings by which the test flatters: a test image belongs together with one of another split."""
    split = {photo.path: photo.split for photo in story.dataset.photos}
    return [
        finding
        for finding in story.dataset.findings
        if finding.kind == "groups"
        or (finding.kind == "leak" and any(_across(inside, split) for inside in finding.images))
    ]


def about_findings(story: ReportData) -> list[Advice]:
    """What the findings in the data call for."""
    doubtful = {finding.kind for finding in doubtful_findings(story)}
    found = []
    if "leak" in doubtful:
        text = (
            "Test on images the training has not seen: some of the test images all but repeat training or "
            "validation images. Keep each burst or place in one split, with a group column or --group-by."
        )
        found.append(Advice(text, 1.0))
    if "groups" in doubtful:
        text = (
            "Photograph on more occasions, on other days and from other places: some classes come from so few that "
            "nothing new is left to test them with."
        )
        found.append(Advice(text, 0.9))
    for finding in story.dataset.findings:
        if finding.kind in ("label", "small"):
            share = len(finding.images) / max(1, len(story.dataset.photos))
            stake = share if finding.kind == "label" else share / 10
            found.append(Advice(f"{finding.message[:1].upper()}{finding.message[1:]}.", stake))
    return found


def _across(group: Sequence[str], split: Mapping[str, str]) -> bool:
    splits = {split[path] for path in group if path in split}  # copies were left out of the data
    return "test" in splits and len(splits) > 1
