"""Video blocks found in token sequences, and refused where they are not those of the videos."""

from types import SimpleNamespace

import pytest

from rl.policy.layout import counts_in, expand_blocks, find_marked

START, END, PAD, WORD = 1, 2, 3, 9


def found(prompt, counts):
    return find_marked(prompt, counts, START, PAD)


def test_a_block_reaches_from_its_start_to_its_last_placeholder_times_between_scenes_included():
    first, second = found([WORD, START, WORD, PAD, PAD, WORD, PAD, PAD, END, WORD, START, PAD, END], [[4], [1]])
    assert first[:2] == (1, 8)
    assert first[2].tolist() == [False, False, True, True, False, True, True]
    assert second[:2] == (10, 12)
    assert second[2].tolist() == [False, True]


def test_scenes_with_markers_of_their_own_are_one_video():
    scene = [WORD, START, PAD, PAD, END]
    first, second = found([WORD, *scene, *scene, WORD, *scene], [[2, 2], [2]])
    assert first[:2] == (2, 10)
    assert first[2].tolist() == [False, True, True, False, False, False, True, True]
    assert second[:2] == (13, 16)


def test_a_prompt_without_videos_has_no_blocks():
    assert found([WORD, WORD], []) == []


@pytest.mark.parametrize(
    ("prompt", "counts"),
    [
        ([START, PAD, END], [[2]]),  # not expanded
        ([START, PAD, PAD, PAD, END], [[2]]),  # expanded twice
        ([START, PAD, END], []),  # video missing
        ([START, PAD, END], [[1], [1]]),  # video too many
        ([WORD], [[1]]),
        ([PAD, START, PAD, END], [[1]]),  # a placeholder outside any block
        ([START, PAD, END, START, PAD, PAD, END], [[2], [1]]),  # videos in the wrong order
        ([START, PAD, END, START, PAD, PAD, END], [[2, 1]]),  # scenes in the wrong order
        ([START, END], [[0], [0]]),
    ],
)
def test_a_prompt_whose_placeholders_are_not_its_videos_is_refused_with_both_counts(prompt, counts):
    with pytest.raises(ValueError, match="placeholders already expanded"):
        found(prompt, counts)


IDS = SimpleNamespace(vision_start=START, vision_end=END, video_pad=PAD)
BARE = [START, PAD, END]  # as a chat template leaves a video
AROUND_BLOCK = [START, 7, PAD, PAD, 8, PAD, PAD, END]
AROUND_SCENE = [7, START, PAD, PAD, END, 8, START, PAD, PAD, END]
ONE_TOKEN = [7, START, PAD, END]  # a scene of one token, its own markers around it: bare, but for its time


@pytest.mark.parametrize("block", [AROUND_BLOCK, AROUND_SCENE, ONE_TOKEN, ONE_TOKEN * 3])
def test_a_placeholder_becomes_its_videos_block_and_a_block_stays_as_it_is(block):
    written = [WORD, *block, WORD, *block, *block, WORD]
    assert expand_blocks([WORD, *BARE, WORD, *BARE, *BARE, WORD], [block] * 3, IDS) == written
    assert expand_blocks(written, [block] * 3, IDS) == written
    assert expand_blocks([WORD, *block, WORD, *BARE, *block, WORD], [block] * 3, IDS) == written
    assert len(find_marked(written, [counts_in(block, IDS)] * 3, START, PAD)) == 3


def block_of(pads):
    return [START, *[PAD] * pads, END]


@pytest.mark.parametrize(
    ("prompt", "blocks"),
    [
        ([*BARE, *BARE], []),
        ([*BARE, *BARE], [AROUND_BLOCK]),
        ([*BARE, *BARE], [AROUND_BLOCK] * 3),
        # a block that stands there is another video's: longer or shorter than its own, by less or more than is left
        ([*block_of(2), *BARE], [block_of(5), block_of(2)]),
        ([*block_of(2), *BARE], [block_of(4), block_of(2)]),
        ([*block_of(2), *BARE], [block_of(3), block_of(2)]),
        ([*block_of(3), *BARE], [block_of(2), block_of(2)]),
        ([*BARE, *block_of(2)], [block_of(2), block_of(5)]),
        ([*BARE, *block_of(2)], [block_of(2), block_of(5), block_of(2)]),
    ],
)
def test_placeholders_that_are_not_their_videos_are_left_for_the_refusal(prompt, blocks):
    expanded = expand_blocks(prompt, blocks, IDS)
    with pytest.raises(ValueError, match="one placeholder per video"):
        find_marked(expanded, [counts_in(block, IDS) for block in blocks], START, PAD)
