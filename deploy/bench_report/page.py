"""Renders benchmark reports of one or several machines as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from edge_agent.bench.report import Report, Steady
from trainer.report.templating import environment

from . import charts

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_STAGES = ("decode", "preprocess", "invoke", "decide", "publish")


def render(reports: Sequence[Report]) -> str:
    """Render the reports as a self-contained HTML page."""
    from markupsafe import Markup

    template = environment("deploy.bench_report", "trainer.report").get_template("latency.html.j2")
    rows = [_row(report, steady, place) for place, (report, steady) in enumerate(_steady(reports))]
    return template.render(
        reports=reports,
        rows=rows,
        stages=_STAGES,
        sustained=[
            {"one": one, "name": report.name_of(one.bundle), "machine": report.machine.hostname, "chart": Markup(svg)}  # noqa: S704  our own SVG
            for report in reports
            for one in report.sustained
            if one.seconds and (svg := charts.over_time(one))
        ],
        cameras=[
            {"one": one, "name": report.name_of(one.bundle), "machine": report.machine.hostname}
            for report in reports
            for one in report.end_to_end
        ],
        charts={name: Markup(svg) for name, svg in _charts(rows).items()},  # noqa: S704  our own SVG
        failed=[(report.machine.hostname, failure) for report in reports for failure in report.failed],
    )


def _steady(reports: Sequence[Report]) -> list[tuple[Report, Steady]]:
    return [(report, steady) for report in reports for steady in report.steady]


def _row(report: Report, steady: Steady, place: int) -> dict[str, Any]:
    return {
        "letter": _letter(place),
        "machine": report.machine,
        "name": report.name_of(steady.bundle),
        "delegate": Path(steady.delegate).name if steady.delegate else "",
        "steady": steady,
        "subject": report.subject(steady.bundle),
    }


def _letter(place: int) -> str:
    return _LETTERS[place % 26] * (1 + place // 26)


def _charts(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    drawings: dict[str, str] = {}
    if not rows:
        return drawings
    letters, steady = [row["letter"] for row in rows], [row["steady"] for row in rows]
    drawings["ranges"] = charts.ranges(letters, steady)
    drawn = [(row["letter"], row["steady"]) for row in rows if row["steady"].times_ms][: charts.MAX_CURVES]
    if drawn:
        drawings["distributions"] = charts.distributions([letter for letter, _ in drawn], [one for _, one in drawn])
    keyed = sorted(rows, key=lambda row: (row["machine"].hostname, row["name"], row["delegate"], row["steady"].threads))
    groups = [
        list(group)
        for _, group in groupby(keyed, key=lambda row: (row["machine"].hostname, row["name"], row["delegate"]))
    ]
    several = [group for group in groups if len({row["steady"].threads for row in group}) > 1][: charts.MAX_CURVES]
    if several:
        # The letters of its first and last row identify a group.
        names = [f"{group[0]['letter']} to {group[-1]['letter']}" for group in several]
        drawings["threads"] = charts.threads(names, [[row["steady"] for row in group] for group in several])
    points = [
        (row["letter"], (row["steady"].invoke.p50, row["subject"].accuracy))
        for row in rows
        if row["subject"] is not None and row["subject"].accuracy is not None
    ]
    if len({accuracy for _, (_, accuracy) in points}) > 1:
        drawings["accuracies"] = charts.accuracies([letter for letter, _ in points], [point for _, point in points])
    return drawings
