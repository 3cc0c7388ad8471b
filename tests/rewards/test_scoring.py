"""Terms become one score per segment; what could not be computed is a named failure, never a zero."""

import time
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

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


class Unshown:
    def __repr__(self):
        raise ValueError


def score(task, terms, *trajectories, **options):
    return score_group(TrajectoryGroup(task, trajectories, None), terms, **options).rewards_G


@pytest.mark.parametrize("kind", AnswerKind)
def test_built_in_rewards_score_the_golden_group(kind):
    terms = [WeightedReward(n, resolve(n, segment=s), Segment[s.upper()]) for n, s in BUILTIN.items()]

    looked_well, looked_elsewhere, asked_badly, never_looked = score_group(golden_group(kind), terms).rewards_G

    assert (looked_well.sampling, looked_well.reasoning) == (1.0, 1.0)
    assert looked_well.breakdown == dict.fromkeys(BUILTIN, 1.0)
    assert looked_elsewhere.sampling == pytest.approx(0.2)  # IoU 0, rate 1 instead of 4: (0 + 0.4) / 2
    assert (asked_badly.sampling, asked_badly.reasoning) == (0.0, 0.5)
    assert (never_looked.sampling, never_looked.reasoning) == (0.0, 1.0)


def test_weights_are_normalised_within_their_segment(task, trajectory_of, call):
    terms = [sampling(temporal_iou, 3.0), sampling(frame_rate, 1.0), reasoning(one, 7.0)]

    (scores,) = score(task(), terms, trajectory_of(calls=[call(2, 5, fps=9)]))

    assert scores.sampling == pytest.approx(0.75 * 0.5 + 0.25 * 0.0)
    assert scores.reasoning == 1.0
    assert scores.breakdown == pytest.approx({"temporal_iou": 0.5, "frame_rate": 0.0, "one": 1.0})


@pytest.mark.parametrize(("calls", "reward"), [("mean", 0.5), ("last", 0.0), ("max", 1.0)])
def test_several_calls(task, trajectory_of, call, malformed, calls, reward):
    looked_thrice = trajectory_of(calls=[call(3, 6), call(2, 5), malformed])

    (scores,) = score(task(), [sampling(temporal_iou)], looked_thrice, calls=calls)

    assert scores.sampling == pytest.approx(reward)  # of 1, 0.5 and a failed call's 0
    assert scores.breakdown["temporal_iou"] == pytest.approx(reward)
    assert scores.calls == pytest.approx((1.0, 0.5, 0.0))


def test_without_a_call_there_is_no_reward_of_one(task, trajectory_of):
    (scores,) = score(task(), [sampling(temporal_iou)], trajectory_of(calls=[]))

    assert (scores.sampling, scores.calls) == (0.0, ())


@pytest.mark.parametrize(("own", "counted"), [("", 6 / 3), ("mean", 6 / 3), ("last", 0.0), ("max", 4.0), ("sum", 6.0)])
def test_a_term_may_combine_calls_its_own_way(task, trajectory_of, call, malformed, own, counted):
    looked_thrice = trajectory_of(calls=[call(3, 6, fps=2), call(2, 5, fps=4), malformed])
    seconds = WeightedReward("rate", lambda task, call: call.fps, Segment.SAMPLING, calls=own)

    (scores,) = score(task(), [sampling(temporal_iou), seconds], looked_thrice, calls="mean")

    assert scores.breakdown == pytest.approx({"temporal_iou": 0.5, "rate": counted})  # the other as all do
    assert scores.sampling == pytest.approx((0.5 + counted) / 2)


def test_the_best_call_is_the_best_as_a_whole(task, trajectory_of, call):
    right_window, right_rate = call(3, 6, fps=6), call(2, 5, fps=4)  # IoU 1, rate .6 against IoU .5, rate 1
    terms = [sampling(temporal_iou), sampling(frame_rate)]

    (scores,) = score(task(), terms, trajectory_of(calls=[right_rate, right_window]), calls="max")

    assert scores.breakdown == pytest.approx({"temporal_iou": 1.0, "frame_rate": 0.6})


def test_no_call_and_a_malformed_call_score_0(task, trajectory_of, malformed):
    def never_asked(task, call):
        raise AssertionError("sampling rewards score well-formed calls only")

    without_call, refused = score(task(), [sampling(never_asked)], trajectory_of(), trajectory_of(calls=[malformed]))

    assert without_call.sampling == refused.sampling == 0.0


def test_a_task_without_evidence_has_no_sampling_reward(task, trajectory_of, call):
    terms = [sampling(temporal_iou), reasoning(one)]

    looked, without_call = score(task(evidence=None), terms, trajectory_of(calls=[call(0, 1)]), trajectory_of())

    assert looked.sampling is without_call.sampling is None
    assert looked.breakdown == {"one": 1.0}


def test_a_term_that_does_not_apply_leaves_its_weight_to_the_others(task, trajectory_of, call):
    terms = [sampling(temporal_iou), sampling(frame_rate), reasoning(one)]

    looked, without_call = score(task(fps=None), terms, trajectory_of(calls=[call(2, 5)]), trajectory_of())

    assert looked.sampling == pytest.approx(0.5)
    assert looked.breakdown.keys() == without_call.breakdown.keys() == {"temporal_iou", "one"}


def test_none_for_some_siblings_only_is_a_bug_of_the_term(task, trajectory_of):
    def forgot_a_return(task, trajectory):
        if "long" in trajectory.answer_text:
            return 1.0

    fine, failed = score(task(), [reasoning(forgot_a_return)], trajectory_of("long"), trajectory_of("short"))

    assert fine.reasoning == 1.0
    assert (failed.term, failed.cause, failed.task_id) == ("forgot_a_return", "not_a_number", "t")
    assert "returned None here, but a number for a sibling" in failed.detail
    assert failed.location.source == "def forgot_a_return(task, trajectory):"


def test_no_reasoning_term_that_applies_is_a_failure(task, trajectory_of):
    (scores,) = score(task(), [reasoning(lambda task, trajectory: None)], trajectory_of())

    assert scores.cause == "not_a_number" and "no reasoning reward applies" in scores.detail


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
        (lambda task, trajectory: 10**400, "not_finite", "returned an integer of 1329 bits, as a float inf"),
        (lambda task, trajectory: -(10**5000), "not_finite", "returned an integer of 16610 bits"),
        (lambda task, trajectory: 1e200, "not_finite", "returned 1e+200"),
        (lambda task, trajectory: Decimal("1e400"), "not_finite", "Decimal('1E+400'), as a float inf"),
        (lambda task, trajectory: Decimal("sNaN"), "not_a_number", "Decimal('sNaN')"),
        (lambda task, trajectory: Fraction(10**400, 3), "not_finite", "as a float inf"),
        (lambda task, trajectory: np.longdouble("1e400"), "not_finite", "as a float inf"),
        (lambda task, trajectory: np.complex64(1 + 1j), "not_a_number", "complex64"),
        (lambda task, trajectory: np.str_("1.0"), "not_a_number", "str_"),
        (lambda task, trajectory: np.array("1.0"), "not_a_number", "ndarray"),
        (lambda task, trajectory: b"1", "not_a_number", "bytes: b'1'"),
        (lambda task, trajectory: bytearray(b"1"), "not_a_number", "bytearray"),
        (lambda task, trajectory: np.datetime64("2020-01-01"), "not_a_number", "datetime64"),
        (lambda task, trajectory: torch.tensor(1 + 0j), "not_a_number", "Tensor"),
        (lambda task, trajectory: torch.ones(2), "not_a_number", "Tensor"),
        (lambda task, trajectory: torch.tensor(float("nan")), "not_finite", "tensor(nan), as a float nan"),
        (lambda task, trajectory: Unshown(), "not_a_number", "Unshown: <Unshown instance at"),
        (lambda task, trajectory: {}, "not_a_number", "dict: {}"),
        (lambda task, trajectory: one, "not_a_number", "function"),
        (lambda task, trajectory: (_ for _ in ()).throw(TimeoutError("too slow")), "timeout", "too slow"),
    ],
)
def test_what_cannot_be_computed_is_a_named_failure(task, trajectory_of, call, fn, cause, detail):
    failed, spared = score(
        task(),
        [sampling(fn, name="mine"), reasoning(one)],
        trajectory_of(calls=[call(3, 6)]),
        trajectory_of(),  # no call: the broken term had nothing to score
    )

    assert (failed.term, failed.cause) == ("mine", cause)
    assert detail in failed.detail
    assert spared.sampling == 0.0


@pytest.mark.parametrize(
    "value",
    [
        *(True, 1, Decimal(1), Fraction(1)),
        *(np.float16(1.0), np.float32(1.0), np.longdouble(1), np.bool_(True), np.int64(1), np.uint8(1), np.array(1.0)),
        *(torch.tensor(1.0), torch.tensor(True), torch.tensor(1.0, dtype=torch.bfloat16)),
    ],
    ids=repr,
)
def test_whatever_is_a_number_counts(task, trajectory_of, value):
    (scores,) = score(task(), [reasoning(lambda task, trajectory: value)], trajectory_of())

    assert scores.reasoning == 1.0


def test_a_guard_surrounds_every_call_of_a_reward(task, trajectory_of):
    @contextmanager
    def deadline():
        start = time.monotonic()
        yield
        if time.monotonic() - start > 0.01:
            raise TimeoutError("no result within 0.01 s")

    def slow(task, trajectory):
        time.sleep(0.02)
        return 1.0

    (scores,) = score(task(), [reasoning(slow)], trajectory_of(), guard=deadline)

    assert scores == RewardFailure("slow", "timeout", "no result within 0.01 s", "t")


def test_an_unreadable_video_is_masked_not_scored(task, trajectory_of):
    unreadable, fine = score(task(), [reasoning(one)], trajectory_of(stop=StopReason.VIDEO_ERROR), trajectory_of())

    assert unreadable.cause == "video_error"
    assert fine.reasoning == 1.0


def test_a_term_of_weight_0_is_logged_but_not_counted(task, trajectory_of, call):
    terms = [sampling(temporal_iou), sampling(frame_rate, 0.0), reasoning(one, 0.0)]

    (scores,) = score(task(), terms, trajectory_of(calls=[call(2, 5, fps=9)]))

    assert (scores.sampling, scores.reasoning) == (0.5, 0.0)
    assert scores.breakdown == {"temporal_iou": 0.5, "frame_rate": 0.0, "one": 1.0}


def test_a_segment_without_a_term_that_counts_has_no_reward(task, trajectory_of, call):
    (scores,) = score(task(), [reasoning(one)], trajectory_of(calls=[call(2, 5)]))

    assert (scores.sampling, scores.reasoning) == (None, 1.0)


def test_a_trajectory_without_turns_is_masked(task, trajectory_of):
    empty, _ = score(task(), [reasoning(one)], replace(trajectory_of(), turns=()), trajectory_of())

    assert empty.cause == "no_turns"


def test_unknown_ways_to_combine_calls_are_refused(task, trajectory_of):
    with pytest.raises(ValueError, match=r"scoring\.calls"):
        score(task(), [reasoning(one)], trajectory_of(), calls="median")
