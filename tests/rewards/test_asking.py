"""Rewards that are awaited, rewards that score all siblings at once, and numbers that come along with a score."""

import asyncio
import threading
import time

import pytest

from rewards.background_loop import BackgroundLoop, Raised
from rewards.golden import golden_group
from rewards.limits import deadline
from rewards.registry import RewardLoadError, resolve
from rewards.scoring import WeightedReward, score_group
from rl.trajectory import RewardFailure, Segment, TrajectoryGroup

SHORT_S = 0.3  # a deadline that is missed
AMPLE_S = 3.0  # one that whoever does not hang meets on a busy machine, too


def score(task, fn, *trajectories, segment=Segment.REASONING, **options):
    terms = [WeightedReward("mine", fn, segment)]
    if segment is Segment.SAMPLING:
        terms.append(WeightedReward("one", lambda task, trajectory: 1.0, Segment.REASONING))
    return score_group(TrajectoryGroup(task, trajectories, None), terms, **options).rewards_G


def plain(task, trajectory):
    return len(trajectory.answer_text) / 100


async def awaited(task, trajectory):
    await asyncio.sleep(0)
    return plain(task, trajectory)


def batched(tasks, trajectories):
    return [plain(task, trajectory) for task, trajectory in zip(tasks, trajectories, strict=True)]


async def both(tasks, trajectories):
    await asyncio.sleep(0)
    return tuple(batched(tasks, trajectories))


@pytest.mark.parametrize("fn", [awaited, batched, both])
def test_every_form_gives_what_the_plain_one_gives(fn):
    group = golden_group()
    expected, found = (
        score_group(group, [WeightedReward("mine", f, Segment.REASONING)]).rewards_G for f in (plain, fn)
    )
    assert found == expected and len({own.reasoning for own in found}) > 1


def width(task, call):
    return call.span.length_s / 10


async def width_later(task, call):
    return width(task, call)


def widths(tasks, calls):
    return [width(task, call) for task, call in zip(tasks, calls, strict=True)]


@pytest.mark.parametrize("fn", [width_later, widths])
def test_calls_of_all_siblings_are_scored_in_every_form(task, trajectory_of, call, malformed, fn):
    siblings = (
        trajectory_of(calls=[call(0, 1), malformed, call(0, 3)]),
        trajectory_of(),
        trajectory_of(calls=[call(2, 4)]),
    )
    expected, found = (score(task(), f, *siblings, segment=Segment.SAMPLING) for f in (width, fn))
    assert found == expected
    assert [own.sampling for own in found] == pytest.approx([0.4 / 3, 0.0, 0.2])


def test_awaited_calls_run_side_by_side(task, trajectory_of):
    meeting = threading.Barrier(1)
    together = asyncio.Barrier(4)

    async def meets(task, trajectory):
        await together.wait()  # until all four are there
        return float(meeting.parties)

    assert [own.reasoning for own in score(task(), meets, *[trajectory_of()] * 4, guard=deadline(30))] == [1.0] * 4


def test_what_a_loop_keeps_is_there_in_the_next_call(task, trajectory_of):
    loops = []

    async def looks_around(task, trajectory):
        loops.append(asyncio.get_running_loop())
        return 1.0

    for _ in range(2):
        score(task(), looks_around, trajectory_of())
    assert loops[0] is loops[1]


async def fails_for_some(task, trajectory):
    if trajectory.answer_text == "C":
        raise KeyError("gold")
    return 1.0


def test_one_that_raises_costs_its_own_trajectory_and_is_located(task, trajectory_of):
    fine, failed = score(task(), fails_for_some, trajectory_of(), trajectory_of("C"))
    assert fine.reasoning == 1.0
    assert (failed.cause, failed.detail, failed.location.function) == ("raised", "KeyError: 'gold'", "fails_for_some")
    assert 'raise KeyError("gold")' in failed.location.source


def test_one_that_hangs_is_a_timeout_and_the_others_keep_their_scores(task, trajectory_of):
    async def hangs(task, trajectory):
        if trajectory.answer_text == "C":
            await asyncio.Event().wait()
        return 1.0

    fine, late = score(task(), hangs, trajectory_of(), trajectory_of("C"), guard=deadline(AMPLE_S))
    assert fine.reasoning == 1.0
    assert late == RewardFailure("mine", "timeout", f"no result within {AMPLE_S:g} s (scoring.timeout_s)", "t")


def test_one_that_blocks_the_loop_costs_its_group_and_no_later_one(task, trajectory_of):
    released = threading.Event()

    async def blocks(task, trajectory):
        released.wait(60)
        return 1.0

    late = score(task(), blocks, *[trajectory_of()] * 2, guard=deadline(SHORT_S))
    assert [one.cause for one in late] == ["timeout", "timeout"]
    assert score(task(), awaited, trajectory_of(), guard=deadline(30))[0].reasoning > 0
    released.set()


def test_a_coroutine_that_ends_the_process_or_cancels_itself_ends_its_call_only():
    async def leaves():
        raise SystemExit(3)

    async def cancels():
        raise asyncio.CancelledError

    async def one():
        return 1

    loop = BackgroundLoop()
    left, cancelled, value = loop.run([leaves, cancels, one], deadline(30))
    assert isinstance(left.error, SystemExit) and isinstance(cancelled, Raised) and value == 1
    assert loop.run([one], deadline(30)) == [1]


def test_late_coroutines_are_cancelled():
    ended = threading.Event()

    async def late():
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    started = time.monotonic()
    (outcome,) = BackgroundLoop().run([late], deadline(SHORT_S))
    assert isinstance(outcome.error, TimeoutError) and ended.wait(30)
    assert time.monotonic() - started < 3600


@pytest.mark.parametrize(
    ("returned", "cause", "detail"),
    [
        ([1.0], "not_a_number", "returned 1 values for 2 calls or trajectories"),
        (1.0, "not_a_number", "returned float for 2 calls or trajectories"),
        ({"a": 1.0, "b": 1.0}, "not_a_number", "returned dict for 2"),
        ("ab", "not_a_number", "returned str for 2"),
        ([1.0, "2"], "not_a_number", "returned str: '2'"),
        ([1.0, float("inf")], "not_finite", "returned inf"),
    ],
)
def test_a_batch_that_is_not_one_number_each_fails_as_a_whole(task, trajectory_of, returned, cause, detail):
    def several(tasks, trajectories):
        return returned

    for failure in score(task(), several, trajectory_of(), trajectory_of()):
        assert (failure.term, failure.cause) == ("mine", cause) and detail in failure.detail
        assert failure.location.function == "several"


def test_a_batch_is_asked_once_under_one_deadline_and_not_for_what_is_masked(task, trajectory_of):
    sizes = []

    def several(tasks, trajectories):
        sizes.append((len(tasks), len(trajectories)))
        return [1.0] * len(tasks)

    score(task(), several, trajectory_of(), trajectory_of())
    empty = score_group(TrajectoryGroup(task(), (), None), [WeightedReward("mine", several, Segment.REASONING)])
    assert sizes == [(2, 2)] and empty.rewards_G == ()


def test_numbers_beside_a_score_are_told_and_count_nowhere(task, trajectory_of, call):
    def judged(task, trajectory):
        return {"score": 0.5, "latency_s": 2.0, "cached": True}

    def looked(task, call):
        return {"score": 1.0, "width_s": call.span.length_s}

    terms = [
        WeightedReward("judge", judged, Segment.REASONING),
        WeightedReward("look", looked, Segment.SAMPLING),
    ]
    sibling = trajectory_of(calls=[call(0, 1), call(0, 3)])
    (own,) = score_group(TrajectoryGroup(task(), (sibling,), None), terms).rewards_G
    assert (own.reasoning, own.sampling) == (0.5, 1.0)
    assert own.breakdown == {"judge": 0.5, "look": 1.0}
    assert own.numbers == {"judge/latency_s": 2.0, "judge/cached": 1.0, "look/width_s": 2.0}


@pytest.mark.parametrize(
    ("returned", "detail"),
    [
        ({"score": "good"}, "returned str as 'score': 'good'"),
        ({"score": 1.0, "latency_s": None}, "returned NoneType as 'latency_s': None"),
        ({"score": 1.0, "a b": 1.0}, "returned a number under 'a b': a name is of"),
        ({"score": 1.0, 3: 1.0}, "returned a number under 3"),
        ({"value": 1.0}, "returned dict: {'value': 1.0}"),
    ],
)
def test_numbers_that_are_none_or_have_odd_names_are_refused(task, trajectory_of, returned, detail):
    (failure,) = score(task(), lambda task, trajectory: returned, trajectory_of())
    assert failure.cause == "not_a_number" and detail in failure.detail


def test_a_mapping_may_say_that_it_does_not_apply(task, trajectory_of):
    terms = [
        WeightedReward("mine", lambda task, trajectory: {"score": None, "tried": 1}, Segment.REASONING),
        WeightedReward("one", lambda task, trajectory: 1.0, Segment.REASONING),
    ]
    (own,) = score_group(TrajectoryGroup(task(), (trajectory_of(),), None), terms).rewards_G
    assert own.reasoning == 1.0 and own.breakdown == {"one": 1.0} and own.numbers == {"mine/tried": 1.0}


def test_the_parameters_names_say_which_segment_a_batched_reward_scores(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "def looks(tasks, calls, *, k=1): return [k] * len(calls)\nasync def answers(tasks, trajectories): ..."
    )
    assert resolve(f"{path}:looks", {"k": 2}, segment="sampling")([1, 1], [2, 2]) == [2, 2]
    with pytest.raises(RewardLoadError, match="scores calls: its segment must be 'sampling', not 'reasoning'"):
        resolve(f"{path}:looks", segment="reasoning")
    with pytest.raises(RewardLoadError, match="its segment must be 'reasoning'"):
        resolve(f"{path}:answers", segment="sampling")
