"""The timeline of a run: from one report to the next, the driver's own work beside its workers'."""

import json

import pytest

from rl.run.timeline import Timeline
from rl.tracking.backlog import Backlog
from rl.trajectory import WorkSpan


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def backlog():
    with Backlog(max_failed=1) as opened:
        yield opened


def lines(folder, backlog):
    backlog.retry()
    return [json.loads(line) for line in (folder / "lanes.jsonl").read_text().splitlines()]


def test_a_step_reaches_from_the_report_before_to_its_own(tmp_path, backlog, clock):
    timeline = Timeline(tmp_path, backlog, clock)
    with timeline.span("push"):
        clock.now = 102.0
    clock.now = 110.0
    workers = ["rollout/0", "rollout/1", "learner/0"]
    worked = [WorkSpan("rollout/0", "rollout", 102.0, 107.0), WorkSpan("learner/0", "update", 107.0, 109.0)]
    idle = timeline.step(1, worked, workers=workers)
    assert idle == pytest.approx({"idle/engines": 0.75, "idle/learners": 0.8})
    clock.now = 114.0
    assert timeline.step(2, [], workers=workers) == {"idle/engines": 1.0, "idle/learners": 1.0}

    first, second = lines(tmp_path, backlog)
    assert first["lanes"] == {
        "learner/0": [["update", 7.0, 9.0]],
        "push": [["push", 0.0, 2.0]],
        "rollout/0": [["rollout", 2.0, 7.0]],
    }
    assert second == {"step": 2, "start_s": 110.0, "seconds": 4.0, "lanes": {}}


def test_what_fails_has_taken_its_time_too(tmp_path, backlog, clock):
    timeline = Timeline(tmp_path, backlog, clock)
    with pytest.raises(RuntimeError), timeline.span("push"):
        clock.now = 103.0
        raise RuntimeError
    timeline.step(1, [], workers=[])
    assert lines(tmp_path, backlog)[0]["lanes"] == {"push": [["push", 0.0, 3.0]]}


def test_half_a_line_that_a_killed_run_left_is_cut_off(tmp_path, backlog, clock):
    (tmp_path / "lanes.jsonl").write_text('{"step": 1, "lanes": {}}\n{"step": 2, "la')
    Timeline(tmp_path, backlog, clock).step(2, [], workers=[])
    assert [line["step"] for line in lines(tmp_path, backlog)] == [1, 2]
