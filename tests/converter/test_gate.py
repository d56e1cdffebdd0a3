from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from converter import gate
from converter.gate import DEFAULT_MAX_CLASS_DROP, GateLimits, Verdict, gate_error, latencies_ms, refused
from edge_agent.inference.evaluation import Evaluation

LENIENT = GateLimits(100, 100)


def scored(*predicted: int, truth: tuple[int, ...] = (0, 0, 1, 1)) -> Evaluation:
    scores = np.full((len(predicted), 2), 0.1, np.float32)
    scores[np.arange(len(predicted)), list(predicted)] = 0.9
    return Evaluation(("a", "b"), np.array(truth), scores)


def checks(verdict: Verdict, limits: GateLimits) -> list[str]:
    return [refusal.check for refusal in verdict.refusals(limits)]


def test_what_is_within_the_limit_passes_and_what_is_not_is_refused() -> None:
    verdict = Verdict(scored(0, 0, 1, 1), scored(0, 0, 1, 0))
    assert verdict.drop == pytest.approx(25)
    assert checks(verdict, GateLimits(25, 100)) == []
    (refusal,) = verdict.refusals(GateLimits(24, 100))
    assert refusal.check == "drop"
    assert "25.0 points lost, at most 24 allowed (--max-drop)" in refusal.reason
    assert checks(Verdict(scored(0, 0, 1, 0), scored(0, 0, 1, 1)), GateLimits(0, 0)) == []  # better is fine
    metrics = verdict.metrics()
    assert (metrics.float32.accuracy, metrics.model.accuracy, metrics.agreement) == (1, 0.75, 0.75)


def test_a_class_that_lost_more_than_one_image_and_too_many_points_is_named() -> None:
    truth = (0,) * 10 + (1,) * 10
    right = scored(*truth, truth=truth)
    one_lost = scored(1, *truth[1:], truth=truth)
    two_lost = scored(1, 1, *truth[2:], truth=truth)
    assert checks(Verdict(right, one_lost), GateLimits(100, 5)) == []  # 10 points, but one image
    (refusal,) = Verdict(right, two_lost).refusals(GateLimits(100, 19.9))
    assert refusal.check == "class-drop"
    assert "a 100 -> 80 %" in refusal.reason
    assert checks(Verdict(right, two_lost), GateLimits(100, 20)) == []
    assert DEFAULT_MAX_CLASS_DROP == 10


def test_as_right_but_on_other_images_is_refused_where_agreement_is_asked_for() -> None:
    verdict = Verdict(scored(0, 1, 1, 1), scored(1, 0, 1, 1))
    assert checks(verdict, GateLimits(0, 100)) == []
    assert checks(verdict, GateLimits(0, 100, min_agreement=50)) == []
    (refusal,) = verdict.refusals(GateLimits(0, 100, min_agreement=97))
    assert refusal.check == "agreement"
    assert "the same class as float on 50.0 % of the test images, at least 97 required" in refusal.reason


def test_a_broken_model_is_refused_whatever_its_accuracy() -> None:
    constant = scored(0, 0, 0, 0)
    assert checks(Verdict(constant, constant), LENIENT) == ["constant"]
    broken = scored(0, 0, 1, 1)
    broken.scores[0] = np.nan
    refusals = Verdict(scored(0, 0, 1, 1), broken).refusals(LENIENT)
    assert [refusal.check for refusal in refusals] == ["not-a-number"]
    # Nothing can be done with it, so nothing lets it through.
    assert refused(refusals, GateLimits(allowed=frozenset({"drop", "constant", "slow", "class-drop"}))) == refusals
    assert str(gate_error(refusals, "int8")).endswith("nothing was written")


def test_a_model_slower_than_float_is_refused_with_the_reason_and_a_way_out() -> None:
    same = scored(0, 0, 1, 1)
    (refusal,) = Verdict(same, same, 4.0, 9.0, Counter({"HARD_SWISH": 20, "ADD": 1})).refusals(LENIENT)
    assert refusal.check == "slow"
    assert "9.0 ms here, float 4.0 ms" in refusal.reason
    assert "20 HARD_SWISH, 1 ADD run outside the runtime's fast path" in refusal.reason
    assert "efficientnet-lite0" in refusal.reason
    assert checks(Verdict(same, same, 4.0, 4.1, Counter()), LENIENT) == []  # as fast, within the noise
    assert checks(Verdict(same, same, 4.0, 9.0), LENIENT) == []  # float16 need not be faster


def test_an_override_lets_through_what_it_names_and_nothing_else() -> None:
    verdict = Verdict(scored(0, 0, 1, 1), scored(0, 0, 0, 0), 1.0, 2.0, Counter())
    refusals = verdict.refusals(GateLimits(0, 0))
    assert [refusal.check for refusal in refusals] == ["constant", "drop", "class-drop", "slow"]
    left = refused(refusals, GateLimits(allowed=frozenset({"constant", "slow"})))
    assert [refusal.check for refusal in left] == ["drop", "class-drop"]
    assert str(gate_error(left, "int8")).endswith("to pack it anyway: --allow drop --allow class-drop")


def test_slowness_counts_where_one_thread_confirms_it(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {None: [4.0, 9.0], 1: [8.0, 5.0]}
    monkeypatch.setattr(gate, "latencies_ms", lambda models, threads=None: times[threads])
    assert gate.timed_ms(b"", b"") == (8.0, 5.0)
    times[None] = [4.0, 3.0]
    assert gate.timed_ms(b"", b"") == (4.0, 3.0)


def test_models_are_timed_in_turn(bundle_file: str) -> None:
    from edge_agent.bundle import open_bundle

    model = open_bundle(bundle_file).read("model.tflite")
    times = latencies_ms([model, model])
    assert len(times) == 2
    assert all(0 < time < 1000 for time in times)
