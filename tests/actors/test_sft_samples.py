"""Examples as samples: encoded one batch ahead, kept while there is room, replaced where they cannot be used."""

from dataclasses import replace

import numpy as np
import pytest

from envs.data.formats import RetrievalTrace
from rl.trajectory import (
    AnswerKind,
    Frames,
    TrainingSample,
    VideoTask,
)

pytestmark = pytest.mark.ray  # Ray is imported; no cluster is needed

PIXEL_BYTES = 2 * 4 * 4 * 3
TRACES = [RetrievalTrace(VideoTask(str(n), "clip.mp4", "?", "A", AnswerKind.LETTER), ("B",)) for n in range(8)]


class Pool:
    """Turns a trace into a sample whose second token is its number; records what is started and collected."""

    def __init__(self, unusable=()):
        self.unusable, self.diary = set(unusable), []

    def start(self, traces):
        numbers = [int(trace.task.task_id) for trace in traces]
        self.diary.append(("start", numbers))
        return numbers

    def collect(self, numbers):
        self.diary.append(("collect", numbers))
        return ["no such clip" if number in self.unusable else self._sample(number) for number in numbers]

    def _sample(self, number):
        video = Frames(np.zeros((2, 4, 4, 3), np.uint8), (0.0, 1.0), (2,), 4, 4, f"digest-{number}")
        zeros = (0.0, 0.0)
        return TrainingSample((1, number), (0, 2), (0, 0), zeros, (0.0, 1.0), (False, True), (-1, 0), (video,))


@pytest.fixture
def feed():
    from actors.sft_samples import SampleFeed

    def make(pool, traces=TRACES, **settings):
        return SampleFeed(pool, traces, **settings)

    return make


def numbers_of(batches):
    return [[sample.token_ids[1] for sample in samples] for samples in batches]


def test_batches_come_in_order_and_the_next_is_made_while_one_is_learned_from(feed):
    pool = Pool()
    batches = feed(pool).samples([[3, 1], [0, 2], [5, 4]])
    assert numbers_of([next(batches)]) == [[3, 1]]
    assert pool.diary == [("start", [3, 1]), ("start", [0, 2]), ("collect", [3, 1])]
    assert numbers_of(batches) == [[0, 2], [5, 4]]


def test_kept_samples_are_not_made_again_and_those_beyond_the_budget_are(feed):
    batches = [[0, 1], [2, 3], [1, 2], [3, 0]]
    pool = Pool()
    assert numbers_of(feed(pool, budget_bytes=2 * PIXEL_BYTES).samples(batches)) == batches
    assert [numbers for what, numbers in pool.diary if what == "start"] == [[0, 1], [2, 3], [2], [3]]


def test_the_samples_do_not_depend_on_what_is_kept(feed):
    batches = [[0, 1, 5], [5, 0, 2], [1, 1, 7]]
    rich, poor = (numbers_of(feed(Pool({5}), budget_bytes=room).samples(batches)) for room in (10**9, 0))
    assert rich == poor == [[0, 1, 6], [6, 0, 2], [1, 1, 7]]


def test_an_example_that_cannot_be_used_is_reported_and_counted_and_the_next_one_taken(feed, caplog):
    made = feed(Pool({6, 7}))
    counted = [
        (numbers, made.skipped) for (numbers,) in map(numbers_of, ([b] for b in made.samples([[6], [7, 6], [0, 1]])))
    ]
    assert counted == [([0], 1), ([0, 0], 2), ([0, 1], 0)]
    assert "example left out: no such clip" in caplog.text


def test_when_no_example_can_be_used_the_first_reason_is_in_the_error(feed):
    from actors.sft_samples import SampleError

    with pytest.raises(SampleError, match="no example of 8 in a row can be used; the first: no such clip"):
        next(feed(Pool(range(8))).samples([[2, 3], [4, 5]]))


def test_examples_are_spread_over_workers_and_come_back_in_order(ray_cluster, monkeypatch):
    from actors import sft_samples

    monkeypatch.setattr(sft_samples, "SampleWorker", Echo)
    pool = sft_samples.SamplePool(
        lambda: None, 2, lambda index: {"num_cpus": 0, "name": f"t/trace/{index}"}, timeout_s=60
    )
    many = [replace(TRACES[0], replies=(str(n),)) for n in range(50)]
    calls = pool.start(many)
    replayed = pool.collect(calls)
    assert [text for text, _ in replayed] == [str(n) for n in range(50)]
    assert len({worker for _, worker in replayed}) == 2 and len(calls) == 4
    assert pool.collect(pool.start([])) == []
    pool.stop()


class Echo:
    """A worker that says what it was given, and which one it is."""

    def __init__(self, make_encode):
        self._made = make_encode

    def location(self):
        return None

    def encode(self, traces):
        import os

        return [(trace.replies[0], os.getpid()) for trace in traces]
