"""Numbers that pickle as arrays: the same numbers, to the last bit, in the space of an array, and shared ones once."""

import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.packed_tuples import PackedFloats, PackedInts
from rl.trajectory import Completion, Segment, Turn

INT32 = st.integers(-(2**31), 2**31 - 1)


def through_pickle(value):
    return pickle.loads(pickle.dumps(value, protocol=5))


@given(st.lists(INT32))
def test_integers_come_back(values):
    back = through_pickle(PackedInts(values))
    assert back == tuple(values) and type(back) is PackedInts and all(type(value) is int for value in back)


@given(st.lists(st.floats() | st.floats(width=32)))
def test_floats_come_back_to_the_last_bit(values):
    back = through_pickle(PackedFloats(values))
    assert np.array(back).tobytes() == np.array(values, np.float64).tobytes() and type(back) is PackedFloats


def test_an_integer_beyond_32_bits_is_an_error_and_no_other_number():
    with pytest.raises(OverflowError):
        pickle.dumps(PackedInts((2**31,)))


@pytest.mark.parametrize(
    ("values", "bytes_each"),
    [
        (PackedInts(range(100_000, 110_000)), 4),
        (PackedFloats([float(np.float32(-math.sqrt(n))) for n in range(10_000)]), 4),
        (PackedFloats([-math.sqrt(n) for n in range(10_000)]), 8),  # no float32
    ],
)
def test_what_they_weigh(values, bytes_each):
    assert len(pickle.dumps(values, protocol=5)) < 10_000 * bytes_each + 200


def test_a_prompt_that_siblings_share_is_pickled_once_and_stays_shared():
    prompt = PackedInts.of(range(10_000))
    turns = [Turn(prompt, Completion((n,), (-0.5,), "stop", 0), Segment.REASONING) for n in range(8)]
    pickled = pickle.dumps(turns, protocol=5)
    assert len(pickled) < 2 * 40_000
    assert len({id(turn.context_token_ids) for turn in pickle.loads(pickled)}) == 1 and through_pickle(turns) == turns
