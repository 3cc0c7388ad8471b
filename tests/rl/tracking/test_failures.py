"""failures.jsonl: each cause once, with its count, its first trajectory and the traceback."""

import json

import pytest

from rl.tracking.backlog import Backlog
from rl.tracking.failures import MOST_CAUSES, FailureLog, read_failures
from rl.trajectory import (
    AnswerKind,
    ClipFailure,
    ErrorLocation,
    RewardFailure,
    ScoredGroup,
    SegmentRewards,
    StopReason,
    TimeSpan,
    Trajectory,
    TrajectoryGroup,
    VideoTask,
)
from tests.remote_groups import remote

TASK = VideoTask("train:12", "/clips/a.mp4", "What flashes?", "B", AnswerKind.LETTER)
AT = ErrorLocation("my_rewards.py", 4, "brevity", 'return row["gold"]', "Traceback …\nKeyError: 'gold'\n")
RAISED = RewardFailure("brevity", "raised", "KeyError: 'gold'", "train:12", AT)
RAISED_ELSEWHERE = RewardFailure("brevity", "raised", "KeyError: 'silver'", "train:13", AT)
FINE = SegmentRewards(None, 1.0, {"answer": 1.0})
UNREADABLE = ClipFailure("/clips/a.mp4", TimeSpan(3, 6), "CorruptVideoError", "is truncated", "download it again")


@pytest.fixture
def run(tmp_path, trajectory):
    """A run's folder in which groups have failed: `failures.add(step, groups)`."""

    class FailingRun:
        folder, loaded, is_lost = tmp_path, (), False

        def start(self):
            return FailureLog(tmp_path, Backlog(max_failed=1), lambda ids: [str(i) for i in ids], self.load)

        def load(self, groups):
            self.loaded = [*self.loaded, *(group.task.task_id for group in groups)]
            return [None if self.is_lost else group.reference for group in groups]

        def lines(self):
            return [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]

        def group(self, *rewards):
            return ScoredGroup(remote(TrajectoryGroup(TASK, (trajectory(sampling=2),) * len(rewards), None)), rewards)

    return FailingRun()


def test_a_cause_is_told_once_and_counted(run):
    failures = run.start()
    (first,) = failures.add(3, [run.group(FINE, RAISED), run.group(RAISED_ELSEWHERE, RAISED)])
    assert first.cause == (
        "reward 'brevity' raised KeyError: 'gold' on task train:12 at my_rewards.py:4 in brevity: return row[\"gold\"]"
    )
    assert first.count == 3 and failures.repeated() == []
    assert failures.add(4, [run.group(RAISED, FINE)]) == []
    assert [(failure.cause, count) for failure, count in failures.repeated()] == [(first.cause, 4)]


def test_of_each_cause_one_trajectory_is_fetched(run):
    failures = run.start()
    failures.add(3, [run.group(FINE, RAISED), run.group(RAISED, FINE)])
    failures.add(4, [run.group(RAISED, RAISED)])
    assert run.loaded == [TASK.task_id]


def test_a_trajectory_that_is_lost_leaves_its_cause_and_its_task(run):
    run.is_lost = True
    run.start().add(3, [run.group(FINE, RAISED)])
    (line,) = run.lines()
    assert line["task"]["id"] == TASK.task_id and "brevity" in line["cause"]
    assert line["trajectory"]["turns"] == [] and "lost" in line["trajectory"]["note"]


def test_the_file_has_a_line_per_cause_with_traceback_task_and_trajectory(run):
    failures = run.start()
    failures.add(3, [run.group(FINE, RAISED)])
    failures.add(5, [run.group(RAISED, RAISED)])
    (line,) = run.lines()
    assert (line["kind"], line["count"], line["first_step"], line["last_step"]) == ("reward", 3, 3, 5)
    assert (line["group"], line["sibling"], line["task"]["id"]) == (0, 1, "train:12")
    assert line["traceback"] == AT.traceback
    assert [turn["segment"] for turn in line["trajectory"]["turns"]] == ["sampling", "reasoning"]
    assert "logprobs" not in line["trajectory"]["turns"][0]


def test_a_clip_that_cannot_be_decoded_is_a_cause_with_window_and_remedy(run):
    failures = run.start()
    lost = Trajectory((), StopReason.VIDEO_ERROR, "", "is truncated", UNREADABLE)
    masked = RewardFailure("*", "video_error", "is truncated", "train:12")
    (failure,) = failures.add(1, [ScoredGroup(remote(TrajectoryGroup(TASK, (lost, lost), None)), (masked, masked))])
    assert (failure.kind, failure.count) == ("clip", 2)
    assert "/clips/a.mp4 (window 3 - 6 s): is truncated; download it again" in failure.cause
    assert "validate-data" in failure.cause


def test_a_run_that_goes_on_counts_on_and_tells_the_cause_again(run):
    run.start().add(3, [run.group(RAISED)])
    again = run.start()
    (failure,) = again.add(7, [run.group(RAISED, RAISED)])
    assert failure.count == 2
    (line,) = run.lines()
    assert (line["count"], line["first_step"], line["last_step"]) == (3, 3, 7)


def test_a_step_without_failures_writes_nothing(run):
    assert run.start().add(1, [run.group(FINE)]) == []
    assert not (run.folder / "failures.jsonl").exists()


def test_the_file_is_bounded(run):
    failures = run.start()
    for number in range(MOST_CAUSES + 5):
        failures.add(1, [run.group(RewardFailure("a", "worker_died", f"pid {number}", "train:12"))])
    assert len(run.lines()) == MOST_CAUSES


@pytest.mark.parametrize("damaged", ["{torn", "[]", '{"key": 1}', "[" * 2000])
def test_what_is_no_failure_is_left_out(run, damaged):
    run.start().add(3, [run.group(RAISED)])
    with (run.folder / "failures.jsonl").open("a") as file:
        file.write(damaged + "\n")
    assert [failure.count for failure in read_failures(run.folder)] == [1]
