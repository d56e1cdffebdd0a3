from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.inference.decision import ClassRule, Decision, Rules, carried_over, decide

RAW = Rules(enter=0.6, leave=0.4, min_time_s=0, smoothing_s=0)


def after(scores: list[list[float]], rules: Rules, step_s: float = 0.1) -> list[Decision]:
    decisions: list[Decision] = []
    for i, row in enumerate(scores):
        before = decisions[-1] if decisions else None
        decisions.append(decide(before, np.array(row, np.float32), i * step_s, rules))
    return decisions


def labels(decisions: list[Decision]) -> list[int | None]:
    return [decision.label for decision in decisions]


def test_a_label_enters_above_one_threshold_and_leaves_below_another() -> None:
    scores = [[0.5, 0.5], [0.61, 0.39], [0.45, 0.55], [0.39, 0.41], [0.5, 0.5], [0.3, 0.7]]
    assert labels(after(scores, RAW)) == [None, 0, 0, None, None, 1]


def test_another_label_takes_over_at_once_when_it_enters() -> None:
    assert labels(after([[0.9, 0.1], [0.1, 0.9]], RAW)) == [0, 1]


def test_a_label_must_hold_for_the_minimum_time() -> None:
    rules = Rules(enter=0.6, leave=0.4, min_time_s=0.25, smoothing_s=0)
    flicker = [[0.9, 0.1]] * 5 + [[0.1, 0.9]] * 2 + [[0.9, 0.1]] * 2 + [[0.1, 0.9]] * 5
    decided = labels(after(flicker, rules))
    assert decided[:3] == [None, None, None]
    assert decided[3:9] == [0] * 6  # two frames of the other are not enough
    assert decided[-1] == 1


def test_losing_a_label_takes_the_minimum_time_too() -> None:
    rules = Rules(enter=0.6, leave=0.4, min_time_s=0.25, smoothing_s=0)
    dip = [[0.9, 0.1]] * 5 + [[0.3, 0.3]] + [[0.9, 0.1]] * 2 + [[0.3, 0.3]] * 4
    assert labels(after(dip, rules))[3:9] == [0] * 6
    assert labels(after(dip, rules))[-1] is None


def test_smoothing_outlives_a_single_wrong_frame() -> None:
    rules = Rules(enter=0.6, leave=0.4, min_time_s=0, smoothing_s=0.5)
    scores = [[1.0, 0.0]] * 10 + [[0.0, 1.0]] + [[1.0, 0.0]] * 3
    assert set(labels(after(scores, rules))) == {0}


@given(
    target=st.floats(0, 1),
    frames=st.integers(2, 60),
    seconds=st.floats(0.1, 5),
    tau=st.floats(0.1, 3),
)
def test_smoothing_depends_on_time_and_not_on_the_frame_rate(
    target: float, frames: int, seconds: float, tau: float
) -> None:
    rules = Rules(enter=2, leave=0, min_time_s=0, smoothing_s=tau)
    decision = decide(None, np.array([0.0, 1.0], np.float32), 0.0, rules)
    end = np.array([target, 1 - target], np.float32)
    for i in range(1, frames + 1):
        decision = decide(decision, end, seconds * i / frames, rules)
    assert decision.scores[0] == pytest.approx(target * (1 - np.exp(-seconds / tau)), abs=1e-3)


@given(
    rows=st.lists(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3), min_size=1, max_size=40),
    enter=st.floats(0, 1),
    leave=st.floats(0, 1),
    hold=st.floats(0, 1),
    tau=st.floats(0, 1),
)
def test_whatever_the_scores_a_decided_label_was_earned(
    rows: list[list[float]], enter: float, leave: float, hold: float, tau: float
) -> None:
    rules = Rules(max(enter, leave), min(enter, leave), hold, tau)
    decisions = after(rows, rules)
    previous: int | None = None
    for i, decision in enumerate(decisions):
        assert 0 <= decision.score <= 1
        if decision.label != previous:
            assert i * 0.1 >= hold - 1e-9
            if decision.label is not None:
                assert decision.scores[decision.label] >= rules.enter
        previous = decision.label


@given(rows=st.lists(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=2), min_size=1, max_size=20))
def test_the_same_input_decides_the_same_and_is_not_changed(rows: list[list[float]]) -> None:
    rules = Rules(0.6, 0.4, 0.2, 0.3)
    first, second = after(rows, rules), after(rows, rules)
    assert labels(first) == labels(second)
    scores = np.array(rows[0], np.float32)
    kept = scores.copy()
    decide(first[-1], scores, 99.0, rules)
    assert np.array_equal(scores, kept)


def test_a_clock_that_stands_still_or_goes_back_breaks_nothing() -> None:
    rules = Rules(0.6, 0.4, 0.2, 0.5)
    decision = decide(None, np.array([1, 0], np.float32), 10.0, rules)
    for at in (10.0, 9.0, 10.5):
        decision = decide(decision, np.array([1, 0], np.float32), at, rules)
    assert np.isfinite(decision.scores).all()
    assert decision.label == 0


def test_a_class_may_have_rules_of_its_own() -> None:
    # Class 1 is let in at 0.3 already, class 2 only after half a second above 0.9.
    rules = Rules(0.6, 0.4, 0, 0, {1: ClassRule(0.3, 0.2, 0), 2: ClassRule(0.9, 0.8, 0.5)})
    assert labels(after([[0.5, 0.35, 0.15], [0.7, 0.3, 0.0], [0.5, 0.3, 0.2], [0.59, 0.19, 0.22]], rules)) == [
        1,
        0,
        1,
        None,
    ]
    assert labels(after([[0.1, 0.05, 0.85]] * 9, rules)) == [None] * 9
    held = labels(after([[0.04, 0.01, 0.95]] * 9, rules))
    assert held[:5] == [None] * 5
    assert held[6:] == [2] * 3


@st.composite
def _rule(draw: st.DrawFn) -> ClassRule:
    one, other = draw(st.floats(0, 1)), draw(st.floats(0, 1))
    return ClassRule(max(one, other), min(one, other), draw(st.floats(0, 1)))


@given(
    rows=st.lists(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4), min_size=1, max_size=40),
    common=_rule(),
    classes=st.dictionaries(st.integers(0, 3), _rule()),
    tau=st.floats(0, 1),
)
def test_whatever_the_scores_every_class_keeps_to_its_own_rules(
    rows: list[list[float]], common: ClassRule, classes: dict[int, ClassRule], tau: float
) -> None:
    rules = Rules(common.enter, common.leave, common.min_time_s, tau, classes)
    before: Decision | None = None
    for decision in after(rows, rules):
        was = None if before is None else before.label
        if decision.label is not None:
            own = classes.get(decision.label, common)
            if decision.label != was:
                assert decision.scores[decision.label] >= own.enter
            elif decision.candidate == was:  # no other waits for its time
                assert decision.scores[decision.label] >= min(own.enter, own.leave)
        if was is not None and decision.label is None:
            assert decision.scores[was] < classes.get(was, common).leave
            assert all(s < classes.get(i, common).enter for i, s in enumerate(decision.scores))
        before = decision


@given(
    rows=st.lists(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3), min_size=2, max_size=20),
    common=_rule(),
    tau=st.floats(0, 1),
    order=st.permutations(["a", "b", "c"]),
    at=st.integers(1, 19),
)
def test_a_model_with_the_same_labels_in_another_order_goes_on_where_the_old_one_was(
    rows: list[list[float]], common: ClassRule, tau: float, order: list[str], at: int
) -> None:
    rules = Rules(common.enter, common.leave, common.min_time_s, tau)
    names = ["a", "b", "c"]
    # Equal scores are decided by place, which is what changes here.
    rows = [[s + 1e-3 * i for i, s in enumerate(row)] for row in rows]
    plain, moved, labels_of = None, None, names
    for number, row in enumerate(rows):
        if number == at and moved is not None:
            moved, labels_of = carried_over(moved, labels_of, order), order
        plain = decide(plain, np.array(row, np.float32), number * 0.1, rules)
        given_ = np.array([row[names.index(name)] for name in labels_of], np.float32)
        moved = decide(moved, given_, number * 0.1, rules)
        if len(set(np.round(plain.scores, 5))) < 3:
            return
        assert (plain.label is None) == (moved.label is None)
        if plain.label is not None and moved.label is not None:
            assert names[plain.label] == labels_of[moved.label]


def test_a_new_model_that_lacks_the_decided_label_begins_with_unknown() -> None:
    before = after([[0.9, 0.1]] * 3, RAW)[-1]
    moved = carried_over(before, ["cat", "dog"], ["dog", "fox"])
    assert moved.label is None
    assert moved.scores.tolist() == [np.float32(0.1), 0]
