"""What a disk does not take waits for the next time; too many steps of it stop the run.

A real disk is filled in tests/rl/checkpoint/test_full_disk.py.
"""

from functools import partial
from pathlib import Path

import pytest

from rl.tracking.backlog import Backlog, UnwrittenError

METRICS, RECORDS = Path("run/metrics.jsonl"), Path("run/trajectories/step_000002.jsonl")


class Disk:
    """Takes lines while it is not full; `full` names the files that it does not take."""

    def __init__(self):
        self.taken, self.full = [], set()

    def take(self, path, line):
        if path in self.full:
            raise OSError(28, "No space left on device")
        self.taken.append(line)


@pytest.fixture
def disk():
    return Disk()


@pytest.fixture
def backlog():
    return Backlog(max_failed=3)


@pytest.fixture
def write(backlog, disk):
    return lambda path, step, line: backlog.write(path, step, partial(disk.take, path, line))


def test_what_cannot_be_written_is_written_later_in_its_order_and_once(backlog, disk, write, caplog):
    write(METRICS, 1, "step 1")
    disk.full = {METRICS}
    write(METRICS, 2, "step 2")
    write(METRICS, 2, "evaluation after 2")
    write(METRICS, 3, "step 3")
    assert disk.taken == ["step 1"] and "No space left on device; make room" in caplog.text
    assert "2 of 3 steps in a row; the run goes on" in caplog.text and backlog.take_faults() == []

    disk.full = set()
    write(METRICS, 4, "step 4")
    assert disk.taken == ["step 1", "step 2", "evaluation after 2", "step 3", "step 4"]
    (fault,) = backlog.take_faults()
    assert (fault.kind, fault.worker) == ("write_failed", "metrics.jsonl") and "No space left" in fault.cause
    assert 0 <= fault.recovery_s < 60 and backlog.take_faults() == []


def test_a_file_that_cannot_be_written_does_not_hold_up_the_others(disk, write):
    disk.full = {RECORDS}
    write(RECORDS, 2, "records")
    write(METRICS, 2, "metrics")
    assert disk.taken == ["metrics"]
    disk.full = set()
    write(METRICS, 3, "more metrics")
    assert disk.taken == ["metrics", "records", "more metrics"]


def test_too_many_steps_in_a_row_stop_the_run_with_one_line_of_file_and_remedy(disk, write):
    disk.full = {METRICS, RECORDS}
    for step in (1, 2):
        write(METRICS, step, "")  # several failures in a step count once
        write(RECORDS, step, "")
    with pytest.raises(UnwrittenError) as failure:
        write(METRICS, 3, "")
    assert str(failure.value) == (
        "run/metrics.jsonl (and 1 more files): could not be written: No space left on device; make room, lower "
        "trainer.keep_checkpoints, or set output_dir to another disk; 3 steps in a row could not be written down "
        "(trainer.max_failed_saves=3), so the run stops at step 3"
    )


def test_steps_in_a_row_are_counted_from_the_last_time_everything_was_written(disk, write):
    for step in range(1, 9):
        disk.full = set() if step % 3 == 0 else {METRICS}
        write(METRICS, step, step)
    disk.full = set()
    write(METRICS, 9, 9)
    assert disk.taken == list(range(1, 10))


def test_at_the_end_it_is_tried_once_more(backlog, disk, write):
    with backlog:
        disk.full = {METRICS}
        write(METRICS, 1, "step 1")
        disk.full = set()
    assert disk.taken == ["step 1"]


def test_a_run_that_ends_without_having_written_everything_says_so(backlog, disk, write):
    disk.full = {METRICS}
    with (
        pytest.raises(UnwrittenError, match=r"metrics\.jsonl: could not be written: No space left.*this is lost"),
        backlog,
    ):
        write(METRICS, 1, "step 1")


def test_a_full_disk_does_not_replace_the_error_that_ends_a_run(backlog, disk, write, caplog):
    disk.full = {METRICS}
    with pytest.raises(KeyError, match="own"), backlog:
        write(METRICS, 1, "step 1")
        raise KeyError("the run's own")
    assert "could not be written: No space left on device" in caplog.text and "this is lost" in caplog.text


def test_a_mistake_of_ours_is_not_taken_for_a_full_disk_and_not_made_twice(backlog):
    def mistake():
        raise TypeError("a mistake")

    with pytest.raises(TypeError, match="a mistake"):
        backlog.write(METRICS, 1, mistake)
    with backlog:
        pass
