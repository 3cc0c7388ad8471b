"""Which samples go together: those that begin alike, in micro-batches of so many tokens."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.algorithm.packing import Limits, Sharing, alone, micro_batches, with_common_openings

PLACEHOLDER = 7


@dataclass(frozen=True)
class Sample:
    """Context tokens, then written ones, then perhaps context and written ones again."""

    token_ids: tuple
    segment_ids: tuple
    videos: tuple = ()


def sample(opening, rest, *videos):
    shown = tuple(SimpleNamespace(digest=name, tokens=tokens) for name, tokens in videos)
    return Sample((*opening, *rest), (0,) * len(opening) + (1,) * len(rest), shown)


class Measure:
    ids = SimpleNamespace(video_pad=PLACEHOLDER)

    def visual_tokens(self, frames):
        return frames.tokens


def found(*samples):
    return [(s.members, s.tokens, s.videos, s.own_tokens) for s in with_common_openings(samples, Measure())]


def test_samples_with_the_same_opening_go_together_wherever_they_stand():
    ours, theirs = (1, 2), (1, 3)
    assert found(sample(ours, (5,)), sample(theirs, (5,)), sample(ours, (6, 6))) == [
        ((0, 2), 2, 0, (1, 2)),
        ((1,), 0, 0, (3,)),
    ]


def test_openings_with_other_frames_are_not_the_same():
    opening, clip, other = (1, PLACEHOLDER, PLACEHOLDER), ("a", 2), ("b", 2)
    assert found(sample(opening, (5,), clip), sample(opening, (6,), other)) == [((0,), 0, 0, (4,)), ((1,), 0, 0, (4,))]


def test_only_the_videos_of_the_opening_are_shared():
    opening, clip = (1, PLACEHOLDER), ("a", 1)
    looked = sample(opening, (5, PLACEHOLDER, PLACEHOLDER, 5), clip, ("window", 2))
    assert found(looked, sample(opening, (6,), clip)) == [((0, 1), 2, 1, (4, 1))]


def test_a_sample_in_which_nothing_is_written_shares_nothing():
    bare = Sample((1, 2), (0, 0))
    assert found(bare, bare) == [((0, 1), 0, 0, (2, 2))]


def test_alone_is_every_sample_by_itself():
    assert alone([sample((1,), (2,)), sample((1,), (2, 3))]) == [Sharing((0,), 0, 0, (2,)), Sharing((1,), 0, 0, (3,))]


GROUP = Sharing((0, 1, 2, 3), 10, 1, (5, 20, 5, 1))  # 41 tokens


@pytest.mark.parametrize(
    ("limits", "members"),
    [
        (Limits(4), [(0, 1, 2, 3)]),
        (Limits(4, 41), [(0, 1, 2, 3)]),
        (Limits(4, 40), [(1, 0, 2), (3,)]),  # longest first, and the opening twice: 40 and 11 tokens
        (Limits(4, 25), [(1,), (0, 2, 3)]),  # the first is longer than that and cannot be cut
        (Limits(3), [(1, 0, 2), (3,)]),
        (Limits(1), [(1,), (0,), (2,), (3,)]),
    ],
)
def test_a_group_is_cut_where_it_does_not_fit(limits, members):
    assert [[piece.members for piece in batch] for batch in micro_batches([GROUP], limits)] == [[m] for m in members]


def test_small_pieces_fill_the_room_that_large_ones_leave():
    sizes = alone([sample((1,), range(n)) for n in (4, 9, 2, 6, 5)])  # 5, 10, 3, 7 and 6 tokens
    batches = micro_batches(sizes, Limits(10, 12))
    assert [sorted(member for piece in batch for member in piece.members) for batch in batches] == [[1], [0, 3], [2, 4]]


sharings = st.lists(
    st.tuples(st.integers(0, 30), st.lists(st.integers(1, 40), min_size=1, max_size=9)), min_size=1, max_size=8
)


@given(sharings, st.integers(1, 12), st.integers(0, 90))
def test_every_sample_is_in_one_micro_batch_and_limits_hold(lengths, most, tokens):
    given_, first = [], 0
    for shared, own in lengths:
        given_.append(Sharing(tuple(range(first, first + len(own))), shared, 0, tuple(own)))
        first += len(own)

    batches = micro_batches(given_, Limits(most, tokens))

    members = [member for batch in batches for piece in batch for member in piece.members]
    assert sorted(members) == list(range(first))
    for batch in batches:
        size, count = sum(piece.size for piece in batch), sum(len(piece.members) for piece in batch)
        assert count <= most
        assert not tokens or size <= tokens or count == 1
    assert micro_batches(given_, Limits(most, tokens)) == batches
