"""Which faults are injected when: the same for the same seed, every fault type in every round."""

from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.config.errors import ConfigError
from rl.fault_injection.schedule import FAULT_TYPES, schedule


def first(count, seed, every_s=20.0, **options):
    return list(islice(schedule(seed, every_s, **options), count))


@given(seed=st.integers())
def test_a_seed_decides_which_faults_are_injected_where_and_when(seed):
    assert first(30, seed) == first(30, seed)


@given(seed=st.integers(), every_s=st.floats(1.0, 600.0))
def test_every_round_holds_every_fault_type_once_and_gaps_are_half_to_one_and_a_half_of_the_mean(seed, every_s):
    due = first(3 * len(FAULT_TYPES), seed, every_s)
    for start in range(0, len(due), len(FAULT_TYPES)):
        assert {one.fault_type for one in due[start : start + len(FAULT_TYPES)]} == set(FAULT_TYPES)
    times = [0.0, *(one.after_s for one in due)]
    for before, after in pairwise(times):
        assert 0.5 * every_s - 1e-6 <= after - before <= 1.5 * every_s + 1e-6
    assert all(0 <= one.pick < 1 for one in due)


def test_two_seeds_are_two_schedules():
    assert first(5, 0) != first(5, 1)


def test_only_the_fault_types_that_are_asked_for_are_injected():
    assert {one.fault_type for one in first(10, 0, fault_types=("reward_killed", "run_killed"))} == {
        "reward_killed",
        "run_killed",
    }


def test_a_fault_type_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(ConfigError, match=r"no fault 'driver_melted'; there are rollout_killed, "):
        first(1, 0, fault_types=("driver_melted",))
