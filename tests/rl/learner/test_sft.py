"""The supervised loop: which samples are seen when, and what is reported."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.learner.sft import batches, run_sft, supervised_sample


class Recorder:
    """A trainer whose loss halves with every step."""

    def __init__(self):
        self.seen = []

    def supervise(self, samples):
        self.seen.append(list(samples))
        return {"loss/nll": 8.0 / 2 ** len(self.seen)}


def samples_from(samples):
    return lambda batches: ([samples[index] for index in indices] for indices in batches)


@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 50), st.integers(0, 3))
def test_every_batch_is_full_and_no_sample_is_seen_twice_before_all_are_seen_once(samples, steps, size, seed):
    drawn = [index for batch in batches(samples, steps=steps, batch_size=size, seed=seed) for index in batch]
    assert len(drawn) == steps * size
    for start in range(0, len(drawn), samples):
        epoch = drawn[start : start + samples]
        assert len(set(epoch)) == len(epoch) and set(epoch) <= set(range(samples))


def test_the_order_follows_from_the_seed_alone():
    first, again, other = (list(batches(10, steps=6, batch_size=4, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_every_sample_is_learned_from_and_first_and_last_loss_are_reported():
    trainer, reported = Recorder(), []
    report = run_sft(
        trainer,
        samples_from("abcdef"),
        num_samples=6,
        steps=3,
        batch_size=2,
        seed=0,
        after_step=lambda step, metrics: reported.append((step, metrics)),
    )
    assert sorted(letter for batch in trainer.seen for letter in batch) == list("abcdef")
    assert [step for step, _ in reported] == [1, 2, 3]
    assert (report.first, report.last) == (4.0, 1.0)


@given(st.integers(0, 5))
def test_a_stage_that_goes_on_sees_the_batches_that_are_left_and_no_others(first):
    def seen(first):
        trainer = Recorder()
        run_sft(trainer, samples_from("abcdefg"), num_samples=7, steps=6, batch_size=4, seed=3, first=first)
        return trainer.seen

    assert seen(first) == seen(0)[first:]


def test_training_without_samples_is_refused():
    with pytest.raises(ValueError, match="supervision needs samples"):
        run_sft(Recorder(), samples_from(""), num_samples=0, steps=3, batch_size=2, seed=0)


def test_of_a_trace_its_completions_are_learned_and_inserted_frames_are_not(trajectory, block, scored_group):
    played = scored_group([trajectory(sampling=2, reasoning=1, frames=block("look"))], [(0.0, 0.0)], block("opening"))
    sample = supervised_sample(played.group)
    assert sample.loss_mask == (False, True, True, False, True)
    assert sample.advantages == (0.0, 1.0, 1.0, 0.0, 1.0)
    assert [video.digest for video in sample.videos] == ["opening", "look"]
