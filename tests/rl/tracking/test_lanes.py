"""Who worked when: lanes of a step, bounded, and the shares of it in which nobody did."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.tracking.lanes import MOST_LANES, MOST_SPANS, covered, idle_shares, lanes, thinned, write_lanes
from rl.trajectory import WorkSpan


def span(worker, start_s, end_s, work="w"):
    return WorkSpan(worker, work, start_s, end_s)


INTERVALS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10)), max_size=12).map(
    lambda drawn: [(float(start), float(start + length)) for start, length in drawn]
)


@given(INTERVALS)
def test_time_that_is_covered_twice_counts_once(intervals):
    seconds = {second for first, last in intervals for second in range(int(first), int(last))}
    assert covered(intervals) == len(seconds)


@pytest.mark.parametrize(
    ("spans", "workers", "shares"),
    [  # over the ten seconds from 100 to 110
        ([], ["rollout/0"], {"idle/engines": 1.0}),
        ([span("rollout/0", 100, 105)], ["rollout/0"], {"idle/engines": 0.5}),
        ([span("rollout/0", 90, 105), span("rollout/0", 104, 120)], ["rollout/0"], {"idle/engines": 0.0}),
        ([span("rollout/0", 100, 110)], ["rollout/0", "rollout/1"], {"idle/engines": 0.5}),
        (
            [span("rollout/0", 100, 106), span("learner/0", 106, 109), span("reward/0", 100, 110)],
            ["rollout/0", "learner/0"],
            {"idle/engines": 0.4, "idle/learners": 0.7},
        ),
        ([span("learner/0", 80, 90)], ["learner/0"], {"idle/learners": 1.0}),
    ],
)
def test_idle_is_who_had_nothing_to_do_between_two_reports(spans, workers, shares):
    assert idle_shares(spans, workers, 100.0, 110.0) == pytest.approx(shares)


def test_a_step_without_time_has_no_shares():
    assert idle_shares([], ["rollout/0"], 100.0, 100.0) == {}


@given(st.lists(st.floats(0.01, 5.0), min_size=2, max_size=60), st.integers(1, 20))
def test_of_too_many_spans_the_shortest_pauses_are_closed(lengths, most):
    ends = [0.0]
    for length in lengths:
        ends.append(ends[-1] + length)
    intervals = list(zip(ends[0::2], ends[1::2], strict=False))
    kept = thinned(intervals, most)
    assert len(kept) == min(most, len(intervals))
    assert (kept[0][0], kept[-1][1]) == (intervals[0][0], intervals[-1][1])
    assert all(first[1] <= then[0] for first, then in pairwise(kept))
    pauses = sorted(b[0] - a[1] for a, b in pairwise(intervals))
    left = sorted(b[0] - a[1] for a, b in pairwise(kept))
    assert left == pytest.approx(pauses[len(pauses) - len(left) :])


def test_a_line_has_a_lane_per_worker_and_times_from_the_report_before(tmp_path):
    path = tmp_path / "lanes.jsonl"
    spans = [span("rollout/10", 101, 102), span("rollout/2", 99.5, 103.25), span("push", 108, 109, "push")]
    write_lanes(path, 7, spans, 100.0, 110.0)
    assert json.loads(path.read_text()) == {
        "step": 7,
        "start_s": 100.0,
        "seconds": 10.0,
        "lanes": {"push": [["push", 8.0, 9.0]], "rollout/2": [["w", -0.5, 3.25]], "rollout/10": [["w", 1.0, 2.0]]},
    }


def test_spans_that_overlap_stay_two():
    found = lanes([span("checkpoint", 0, 5, "write"), span("checkpoint", 3, 8, "write")], 0.0)
    assert found == {"checkpoint": [["write", 0.0, 5.0], ["write", 3.0, 8.0]]}


def test_a_line_is_bounded_however_many_workers_and_spans_there_are():
    many = [span(f"rollout/{i}", j, j + 0.5) for i in range(1000) for j in range(100)]
    found = lanes([*many, span("learner/0", 0, 1)], 0.0)
    assert len(found) <= MOST_LANES and "learner/0" in found
    assert max(map(len, found.values())) == MOST_SPANS
    assert list(found)[1:3] == ["rollout/0", "rollout/31"]  # spread evenly
