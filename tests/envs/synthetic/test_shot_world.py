"""The shot world: answers are balanced and independent; what lasts, what is cut and what is brief is on the pixels."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from envs.data.conversation_rows import load_conversations
from envs.synthetic.disturbances import DISTURBANCES
from envs.synthetic.shot_world import LETTERS, QUESTIONS, ShotWorld, clip_pixels, clip_row, define_clips, render_shots
from envs.synthetic.shots import (
    BLACK,
    COLOURS,
    DIRECTIONS,
    MOTION_FRAMES,
    SHORTEST_SHOT,
    SHOTS,
    WHITE,
    ball_places,
    draw,
)

WORLD = ShotWorld(clips=64, seed=3)
CLIPS = define_clips(WORLD)


def answers(clip, index=0):
    row = clip_row(WORLD, clip, index, "clip.mp4")
    return dict(zip(row["kinds"], (turn["value"] for turn in row["conversations"][1::2]), strict=True))


def test_letters_of_each_kind_are_balanced_and_the_kinds_independent():
    given = [answers(clip) for clip in CLIPS]
    for kind in QUESTIONS:
        assert Counter(one[kind] for one in given) == dict.fromkeys(LETTERS, len(CLIPS) // 4)
    pairs = Counter((one["still"], one["motion"]) for one in given)
    assert max(pairs.values()) <= 10  # of 64: 4 each on average


def test_a_letter_stands_for_the_same_answer_in_every_row():
    for index, clip in enumerate(CLIPS[:8]):
        row = clip_row(WORLD, clip, index, "clip.mp4")
        for kind, turn in zip(row["kinds"], row["conversations"][::2], strict=True):
            question, options = QUESTIONS[kind]
            assert question in turn["value"] and turn["value"].endswith(f"D. {options[-1]}")
        assert row["conversations"][0]["value"].startswith("<video>\n")


def test_shots_are_long_enough_and_sum_to_the_clip():
    for clip in CLIPS:
        assert len(clip.shot_frames) == len(set(clip.colours)) == SHOTS
        assert min(clip.shot_frames) >= SHORTEST_SHOT and clip.num_frames == WORLD.num_frames
        assert clip.colours[-1] == list(COLOURS)[LETTERS.index(answers(clip)["order"])]


def test_pixels_change_only_at_cuts_and_while_the_ball_is_there():
    for clip in CLIPS[:16]:
        frames_THWC = draw(clip).astype(int)
        changed = {t for t in range(1, len(frames_THWC)) if np.abs(frames_THWC[t] - frames_THWC[t - 1]).max() > 0}
        first, count = clip.motion.first_frame, clip.motion.num_frames
        cuts = set(np.cumsum(clip.shot_frames)[:-1].tolist())
        assert changed == cuts | set(range(first, first + count + 1))
        assert count in MOTION_FRAMES and first + count < clip.num_frames


def test_the_ball_crosses_in_its_direction_and_backwards_is_the_opposite_answer():
    for clip in CLIPS[:16]:
        (_, start, side), *_, (_, end, _) = ball_places(clip)
        rows, columns = DIRECTIONS[clip.motion.direction]
        gone = np.subtract(end, start)
        assert gone.tolist() == [rows * (WORLD.size - side), columns * (WORLD.size - side)]
        opposite = {(-a, -b): name for name, (a, b) in DIRECTIONS.items()}[rows, columns]
        back = replace(clip, motion=replace(clip.motion, direction=opposite))
        assert {place for _, place, _ in ball_places(back)} == {place for _, place, _ in ball_places(clip)}


def test_bar_and_ball_are_seen():
    clip = CLIPS[0]
    frames_THWC = draw(clip)
    assert all((frame_HWC == BLACK).all(-1).sum() > 100 for frame_HWC in frames_THWC)
    white_T = (frames_THWC == WHITE).all(-1).sum((1, 2))
    assert np.flatnonzero(white_T).tolist() == [frame for frame, _, _ in ball_places(clip)]


@pytest.mark.parametrize("name", DISTURBANCES)
def test_a_disturbance_keeps_what_happens_and_grows_with_its_strength(name):
    weak, strong = {"drift": (0.1, 0.3), "flicker": (0.03, 0.15), "shake": (1, 3), "noise": (4, 16)}[name]
    clean = clip_pixels(WORLD, CLIPS[1], 1).astype(int)
    off = []
    for strength in (weak, strong):
        world = WORLD.disturbed(name, strength)
        assert define_clips(world) == CLIPS
        frames_THWC = clip_pixels(world, CLIPS[1], 1)
        assert frames_THWC.shape == clean.shape and frames_THWC.dtype == np.uint8
        assert (frames_THWC == clip_pixels(world, CLIPS[1], 1)).all()
        off.append(np.abs(frames_THWC - clean).mean())
    assert 0.3 < off[0] < off[1]


def test_a_rendered_world_is_read_as_llava_rows_and_found_again(tmp_path):
    world = ShotWorld(clips=2, seed=5)
    rows = render_shots(world, tmp_path)
    loaded = load_conversations("llava", rows)
    assert len(loaded.conversations) == 2 and not loaded.rejected
    assert [message.role for message in loaded.conversations[0].messages] == ["user", "assistant"] * 3
    written = rows.stat().st_mtime_ns
    assert render_shots(world, tmp_path) == rows and rows.stat().st_mtime_ns == written


@pytest.mark.parametrize("wrong", [{"num_frames": 12}, {"size": 57}, {"disturbance": "fog"}])
def test_worlds_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ShotWorld(**wrong)
