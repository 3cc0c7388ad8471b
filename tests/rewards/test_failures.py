"""A reward that raises is found within a minute: term, task, file, line, source and traceback, once per cause."""

import sys
import textwrap
import time

import pytest

from rewards.failures import TRACEBACK_CHARS, cause_line, distinct_failures
from rewards.limits import deadline
from rewards.registry import resolve
from rewards.scoring import WeightedReward, score_group
from rl.trajectory import RewardFailure, ScoredGroup, Segment, StopReason, TrajectoryGroup
from rl.user_code.errors import MESSAGE_CHARS

MINE = """
    import json, os, sys

    class Mute(Exception):
        def __str__(self):
            raise ValueError

    def raises(task, trajectory):
        return gold_of({"pred": task.question})

    def gold_of(row):
        return row["gold"]

    def in_a_library(task, trajectory):
        return json.loads(trajectory.answer_text)

    def exits(task, trajectory):
        sys.exit(3)

    def hangs(task, trajectory):
        while True:
            pass

    def hungry(task, trajectory):
        raise MemoryError

    def mute(task, trajectory):
        raise Mute

    def verbose(task, trajectory):
        raise ValueError("x" * 10**6)

    def endless(task, trajectory):
        return endless(task, trajectory)
"""


@pytest.fixture
def fail(tmp_path, task, trajectory_of):
    """The failure of one function of MINE on one trajectory."""
    (tmp_path / "my_rewards.py").write_text(textwrap.dedent(MINE))

    def run(function, **options):
        term = WeightedReward("mine", resolve(f"{tmp_path}/my_rewards.py:{function}"), Segment.REASONING)
        (failure,) = score_group(TrajectoryGroup(task(), (trajectory_of("{"),), None), [term], **options).rewards_G
        return failure

    return run


def test_a_reward_that_raises_names_term_task_file_line_and_source(fail, tmp_path):
    failure = fail("raises")

    assert (failure.term, failure.cause, failure.detail, failure.task_id) == ("mine", "raised", "KeyError: 'gold'", "t")
    at = failure.location
    assert (at.file, at.line, at.function) == (f"{tmp_path}/my_rewards.py", 12, "gold_of")
    assert at.source == 'return row["gold"]'
    assert "in raises" in at.traceback and "in gold_of" in at.traceback and "scoring.py" not in at.traceback
    assert cause_line(failure) == (
        f"reward 'mine' raised KeyError: 'gold' on task t at {tmp_path}/my_rewards.py:12 in gold_of: "
        'return row["gold"]'
    )


def test_an_error_inside_a_library_is_located_in_the_users_file(fail):
    at = fail("in_a_library").location

    assert (at.function, at.source) == ("in_a_library", "return json.loads(trajectory.answer_text)")
    assert "json/decoder.py" in at.traceback


def test_a_reward_that_exits_fails_like_one_that_raises(fail):
    failure = fail("exits")

    assert (failure.cause, failure.detail, failure.location.source) == ("raised", "SystemExit: 3", "sys.exit(3)")


def test_a_reward_that_hangs_is_located_where_it_hung(fail):
    failure = fail("hangs", guard=deadline(0.05))

    assert (failure.cause, failure.location.function) == ("timeout", "hangs")
    assert "limits.py" not in failure.location.traceback


def test_a_reward_that_runs_out_of_memory_has_a_cause_of_its_own(fail):
    assert (fail("hungry").cause, fail("hungry").location.source) == ("memory", "raise MemoryError")


@pytest.mark.parametrize(("function", "detail"), [("mute", "cannot be shown: ValueError"), ("verbose", "xxx … xxx")])
def test_messages_are_bounded_and_always_there(fail, function, detail):
    failure = fail(function)

    assert detail in failure.detail and len(failure.detail) < MESSAGE_CHARS + 100


def test_a_traceback_is_bounded(fail):
    at = fail("endless").location

    assert at.function == "endless" and len(at.traceback) <= TRACEBACK_CHARS + 3


def test_a_function_of_c_has_no_location(task, trajectory_of):
    term = WeightedReward("sizes", sys.getsizeof, Segment.REASONING)  # takes other arguments, and raises by itself

    (failure,) = score_group(
        TrajectoryGroup(task(), (trajectory_of(),), None), [WeightedReward("clock", time.gmtime, term.segment)]
    ).rewards_G

    assert (failure.cause, failure.location) == ("raised", None)
    assert cause_line(failure).startswith("reward 'clock' raised TypeError: ")


def test_each_cause_is_told_once_with_its_first_trajectory(fail, task, trajectory_of):
    raised, unread = fail("raises"), RewardFailure("*", "video_error", "a.mp4: is empty", "t")
    siblings = (trajectory_of(), trajectory_of(stop=StopReason.VIDEO_ERROR), trajectory_of())
    group = TrajectoryGroup(task(), siblings, None)
    step = [ScoredGroup(group, (unread, unread, fail("exits"))), ScoredGroup(group, (raised, fail("raises"), raised))]

    exits, raises = distinct_failures(step)

    assert (exits.failure.detail, exits.group, exits.sibling, exits.count) == ("SystemExit: 3", 0, 2, 1)
    assert (raises.failure, raises.group, raises.sibling, raises.count) == (raised, 1, 0, 3)


def test_an_import_that_fails_inside_a_reward_is_located_in_the_rewards_own_file(tmp_path, task, trajectory_of):
    (tmp_path / "mine.py").write_text("def late(task, trajectory):\n    import nowhere_at_all\n")
    term = WeightedReward("mine", resolve(f"{tmp_path}/mine.py:late"), Segment.REASONING)
    (failure,) = score_group(TrajectoryGroup(task(), (trajectory_of("B"),), None), [term]).rewards_G
    assert (failure.location.file, failure.location.line) == (str(tmp_path / "mine.py"), 2)
    assert "user_code" not in failure.location.traceback and "nowhere_at_all" in failure.detail
