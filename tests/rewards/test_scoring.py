"""Terms become one verdict per segment; what could not be computed is a named failure, never a zero."""

import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from rewards.frame_rate import frame_rate
from rewards.golden import golden_group
from rewards.registry import resolve
from rewards.scoring import WeightedReward, score_group
from rewards.temporal_iou import temporal_iou
from rl.trajectory import AnswerKind, RewardFailure, Segment, StopReason, TrajectoryGroup

BUILTIN = {"temporal_iou": "sampling", "frame_rate": "sampling", "answer": "reasoning", "output_format": "reasoning"}


def sampling(fn, weight=1.0, name=None):
    return WeightedReward(name or getattr(fn, "__name__", "term"), fn, Segment.SAMPLING, weight)


def reasoning(fn, weight=1.0, name=None):
    return WeightedReward(name or getattr(fn, "__name__", "term"), fn, Segment.REASONING, weight)


def one(task, trajectory):
    return 1.0


def verdicts(task, terms, *trajectories, **options):
    return score_group(TrajectoryGroup(task, trajectories, None), terms, **options).rewards_G


@pytest.mark.parametrize("kind", AnswerKind)
def test_built_in_rewards_judge_the_golden_group(kind):
    terms = [WeightedReward(n, resolve(n, segment=s), Segment[s.upper()]) for n, s in BUILTIN.items()]

    looked_well, looked_elsewhere, asked_badly, never_looked = score_group(golden_group(kind), terms).rewards_G

    assert (looked_well.sampling, looked_well.reasoning) == (1.0, 1.0)
    assert looked_well.breakdown == dict.fromkeys(BUILTIN, 1.0)
    assert looked_elsewhere.sampling == pytest.approx(0.2)  # IoU 0, rate 1 instead of 4: (0 + 0.4) / 2
    assert (asked_badly.sampling, asked_badly.reasoning) == (0.0, 0.5)
    assert (never_looked.sampling, never_looked.reasoning) == (0.0, 1.0)


def test_weights_are_normalised_within_their_segment(task, said, call):
    terms = [sampling(temporal_iou, 3.0), sampling(frame_rate, 1.0), reasoning(one, 7.0)]

    (verdict,) = verdicts(task(), terms, said(calls=[call(2, 5, fps=9)]))

    assert verdict.sampling == pytest.approx(0.75 * 0.5 + 0.25 * 0.0)
    assert verdict.reasoning == 1.0
    assert verdict.breakdown == pytest.approx({"temporal_iou": 0.5, "frame_rate": 0.0, "one": 1.0})


@pytest.mark.parametrize(("calls", "reward"), [("mean", 0.5), ("last", 0.0), ("max", 1.0)])
def test_several_calls(task, said, call, malformed, calls, reward):
    looked_thrice = said(calls=[call(3, 6), call(2, 5), malformed])

    (verdict,) = verdicts(task(), [sampling(temporal_iou)], looked_thrice, calls=calls)

    assert verdict.sampling == pytest.approx(reward)  # of 1, 0.5 and a failed call's 0
    assert verdict.breakdown["temporal_iou"] == pytest.approx(reward)


def test_the_best_call_is_the_best_as_a_whole(task, said, call):
    right_window, right_rate = call(3, 6, fps=6), call(2, 5, fps=4)  # IoU 1, rate .6 against IoU .5, rate 1
    terms = [sampling(temporal_iou), sampling(frame_rate)]

    (verdict,) = verdicts(task(), terms, said(calls=[right_rate, right_window]), calls="max")

    assert verdict.breakdown == pytest.approx({"temporal_iou": 1.0, "frame_rate": 0.6})


def test_no_call_and_a_malformed_call_score_0(task, said, malformed):
    def never_asked(task, call):
        raise AssertionError("sampling rewards judge well-formed calls only")

    silent, clumsy = verdicts(task(), [sampling(never_asked)], said(), said(calls=[malformed]))

    assert silent.sampling == clumsy.sampling == 0.0


def test_a_task_without_evidence_has_no_sampling_reward(task, said, call):
    terms = [sampling(temporal_iou), reasoning(one)]

    looked, silent = verdicts(task(evidence=None), terms, said(calls=[call(0, 1)]), said())

    assert looked.sampling is silent.sampling is None
    assert looked.breakdown == {"one": 1.0}


def test_a_term_that_does_not_apply_leaves_its_weight_to_the_others(task, said, call):
    terms = [sampling(temporal_iou), sampling(frame_rate), reasoning(one)]

    looked, silent = verdicts(task(fps=None), terms, said(calls=[call(2, 5)]), said())

    assert looked.sampling == pytest.approx(0.5)
    assert looked.breakdown.keys() == silent.breakdown.keys() == {"temporal_iou", "one"}


def test_none_for_some_siblings_only_is_a_bug_of_the_term(task, said):
    def forgot_a_return(task, trajectory):
        if "long" in trajectory.answer_text:
            return 1.0

    fine, failed = verdicts(task(), [reasoning(forgot_a_return)], said("long"), said("short"))

    assert fine.reasoning == 1.0
    assert failed == RewardFailure("forgot_a_return", "not_a_number", "returned None here, but a number for a sibling")


def test_no_reasoning_term_that_applies_is_a_failure(task, said):
    (verdict,) = verdicts(task(), [reasoning(lambda task, trajectory: None)], said())

    assert verdict.cause == "not_a_number" and "no reasoning reward applies" in verdict.detail


def raises(task, trajectory):
    raise KeyError("gold")


@pytest.mark.parametrize(
    ("fn", "cause", "detail"),
    [
        (raises, "raised", "KeyError: 'gold'"),
        (lambda task, trajectory: float("nan"), "not_finite", "nan"),
        (lambda task, trajectory: -float("inf"), "not_finite", "-inf"),
        (lambda task, trajectory: np.float32("nan"), "not_finite", "nan"),
        (lambda task, trajectory: "1.0", "not_a_number", "str: '1.0'"),
        (lambda task, trajectory: [1.0], "not_a_number", "list"),
        (lambda task, trajectory: np.ones(2), "not_a_number", "ndarray"),
        (lambda task, trajectory: 1j, "not_a_number", "complex"),
        (lambda task, trajectory: (_ for _ in ()).throw(TimeoutError("too slow")), "timeout", "too slow"),
    ],
)
def test_what_cannot_be_computed_is_a_named_failure(task, said, call, fn, cause, detail):
    failed, spared = verdicts(
        task(),
        [sampling(fn, name="mine"), reasoning(one)],
        said(calls=[call(3, 6)]),
        said(),  # no call: the broken term had nothing to judge
    )

    assert (failed.term, failed.cause) == ("mine", cause)
    assert detail in failed.detail
    assert spared.sampling == 0.0


@pytest.mark.parametrize("value", [True, 1, np.float32(1.0), np.bool_(True), np.int64(1)])
def test_whatever_is_a_number_counts(task, said, value):
    (verdict,) = verdicts(task(), [reasoning(lambda task, trajectory: value)], said())

    assert verdict.reasoning == 1.0


def test_a_guard_surrounds_every_call_of_a_reward(task, said):
    @contextmanager
    def patience():
        start = time.monotonic()
        yield
        if time.monotonic() - start > 0.01:
            raise TimeoutError("no result within 0.01 s")

    def slow(task, trajectory):
        time.sleep(0.02)
        return 1.0

    (verdict,) = verdicts(task(), [reasoning(slow)], said(), guard=patience)

    assert verdict == RewardFailure("slow", "timeout", "no result within 0.01 s")


def test_an_unreadable_video_is_masked_not_scored(task, said):
    unreadable, fine = verdicts(task(), [reasoning(one)], said(stop=StopReason.VIDEO_ERROR), said())

    assert unreadable.cause == "video_error"
    assert fine.reasoning == 1.0


def test_a_term_of_weight_0_is_watched_but_not_counted(task, said, call):
    terms = [sampling(temporal_iou), sampling(frame_rate, 0.0), reasoning(one, 0.0)]

    (verdict,) = verdicts(task(), terms, said(calls=[call(2, 5, fps=9)]))

    assert (verdict.sampling, verdict.reasoning) == (0.5, 0.0)
    assert verdict.breakdown == {"temporal_iou": 0.5, "frame_rate": 0.0, "one": 1.0}


def test_a_segment_without_a_term_that_counts_has_no_reward(task, said, call):
    (verdict,) = verdicts(task(), [reasoning(one)], said(calls=[call(2, 5)]))

    assert (verdict.sampling, verdict.reasoning) == (None, 1.0)


def test_a_trajectory_without_turns_is_masked(task, said):
    empty, _ = verdicts(task(), [reasoning(one)], replace(said(), turns=()), said())

    assert empty.cause == "no_turns"


def test_unknown_ways_to_combine_calls_are_refused(task, said):
    with pytest.raises(ValueError, match=r"scoring\.calls"):
        verdicts(task(), [reasoning(one)], said(), calls="median")
