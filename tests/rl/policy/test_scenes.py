"""Adaptive Temporal Segmentation. Scene lengths sum to T; the kernel cuts exactly where the definition does."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.config.policy import ScenesConfig
from rl.policy.scenes import fingerprint, noise_floor, segment_scenes, segment_scenes_reference

LITERAL = ScenesConfig(budget="none")
ADAPTIVE = replace(LITERAL, threshold="adaptive")
GREY = 1 / 255 / np.array([0.229, 0.224, 0.225])  # normalised change of one grey level
ONE_LEVEL = float(np.sqrt((GREY**2).sum()))


def flat(*levels, height=28, width=28):
    """One grey frame per level."""
    return np.stack([np.full((height, width, 3), level, np.uint8) for level in levels])


any_scenes = st.builds(
    ScenesConfig,
    mode=st.sampled_from(["dynamic", "dynamic", "dynamic", "fixed", "fixed6"]),
    tau=st.floats(0, 3),
    norm=st.sampled_from(["l2", "rms"]),
    difference_scale=st.sampled_from([1, 2, 4, 8]),
    max_scene_frames=st.integers(1, 9),
    reference=st.sampled_from(["first", "previous"]),
    budget=st.sampled_from(["pairs", "none"]),
    threshold=st.sampled_from(["fixed", "adaptive"]),
    noise_quantile=st.sampled_from([0.1, 0.25, 0.5]),
    noise_spreads=st.sampled_from([0.0, 1.0, 4.0]),
    max_noise=st.sampled_from([0.0, 0.3, 0.8, 9.0]),
)


@st.composite
def videos(draw):
    """Frames that drift: each is the one before with noise of its own strength."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    height, width = draw(st.sampled_from([(28, 28), (28, 56), (56, 28), (10, 7)]))
    frames = [rng.integers(0, 256, (height, width, 3))]
    for strength in draw(st.lists(st.sampled_from([0, 1, 5, 20, 80]), max_size=14)):
        frames.append(np.clip(frames[-1] + rng.integers(-strength, strength + 1, frames[-1].shape), 0, 255))
    return np.stack(frames).astype(np.uint8)


@settings(deadline=None, max_examples=150)
@given(videos(), any_scenes)
def test_kernel_cuts_where_the_definition_does(frames_THWC, scenes):
    lengths = segment_scenes(frames_THWC, scenes)
    assert lengths == segment_scenes_reference(frames_THWC, scenes)
    assert sum(lengths) == len(frames_THWC)
    assert min(lengths) >= 1


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("noise_spreads, lengths", [(0.0, (3, 1, 1, 1)), (1.0, (4, 1, 1))])
def test_a_change_as_large_as_the_noise_floor_is_no_cut(seed, noise_spreads, lengths):
    steps = np.random.default_rng(seed).integers(1, 9, (5, 28, 28, 3)) * np.arange(1, 6).reshape(5, 1, 1, 1)
    frames_THWC = np.cumsum([np.zeros((28, 28, 3)), *steps], axis=0).astype(np.uint8)
    scenes = replace(
        ADAPTIVE, tau=0.0, reference="previous", noise_quantile=0.25, noise_spreads=noise_spreads, max_noise=9.0
    )
    assert segment_scenes(frames_THWC, scenes) == segment_scenes_reference(frames_THWC, scenes) == lengths


@settings(deadline=None, max_examples=80)
@given(videos(), any_scenes)
def test_pairs_budget_never_gives_more_scenes_than_frame_pairs(frames_THWC, scenes):
    scenes = replace(scenes, mode="dynamic", budget="pairs", max_scene_frames=max(2, scenes.max_scene_frames))
    assert len(segment_scenes(frames_THWC, scenes)) <= -(-len(frames_THWC) // 2)


@settings(deadline=None, max_examples=40)
@given(videos(), any_scenes)
def test_budget_leaves_a_video_that_fits_alone(frames_THWC, scenes):
    literal = segment_scenes(frames_THWC, replace(scenes, mode="dynamic", budget="none"))
    if len(literal) <= -(-len(frames_THWC) // 2):
        assert segment_scenes(frames_THWC, replace(scenes, mode="dynamic", budget="pairs")) == literal


def test_scene_lasts_while_it_resembles_its_first_frame():
    assert segment_scenes(flat(10, 10, 15, 200, 200, 10), LITERAL) == (3, 2, 1)


@pytest.mark.parametrize("level, lengths", [(7, (2,)), (8, (1, 1))])
def test_tau_is_in_normalised_units(level, lengths):
    assert ONE_LEVEL * 6 < 0.2 < ONE_LEVEL * 8
    assert segment_scenes(flat(0, level), replace(LITERAL, tau=ONE_LEVEL * 7.5)) == lengths


def test_slow_drift_is_cut_against_the_first_frame_but_not_against_the_previous():
    drift = flat(0, 5, 10, 15, 20, 25)
    assert segment_scenes(drift, LITERAL) == (2, 2, 2)
    assert segment_scenes(drift, replace(LITERAL, reference="previous")) == (6,)


def test_downscaling_is_proof_against_sensor_noise(random_pixels):
    noise = np.random.default_rng(1).normal(0, 6, (8, 56, 56, 3))
    still = np.clip(128 + noise, 0, 255).astype(np.uint8)
    assert len(segment_scenes(still, LITERAL)) == 8
    assert segment_scenes(still, replace(LITERAL, difference_scale=8)) == (8,)


def disturbed_still(kind, strength, num_frames=24):
    """A still picture with two cuts, under a light that flickers or a sensor that is noisy."""
    rng = np.random.default_rng(3)
    shots = np.repeat(rng.integers(40, 160, (3, 1, 1, 3)), num_frames // 3, axis=0) + np.zeros((1, 28, 28, 1))
    if kind == "noise":
        return np.clip(shots + rng.normal(0, strength, shots.shape), 0, 255).astype(np.uint8)
    return np.clip(shots * rng.normal(1, strength, (num_frames, 1, 1, 1)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("strength", [6, 12])
def test_sensor_noise_cuts_every_frame_by_the_fixed_threshold_and_none_by_the_adaptive_one(strength):
    frames_THWC = disturbed_still("noise", strength)
    assert segment_scenes(frames_THWC, LITERAL) == (1,) * 24
    assert segment_scenes(frames_THWC, ADAPTIVE) == (8, 8, 8)


@pytest.mark.parametrize("strength", [0.03, 0.06])
def test_flicker_makes_at_most_half_as_many_false_cuts_by_the_adaptive_threshold_and_hides_no_true_one(strength):
    frames_THWC = disturbed_still("flicker", strength)
    fixed, adaptive = (np.cumsum(segment_scenes(frames_THWC, scenes)) for scenes in (LITERAL, ADAPTIVE))
    assert {8, 16, 24} <= set(adaptive)
    assert 2 * (len(adaptive) - 3) <= len(fixed) - 3


changes = st.lists(st.floats(0, 2), min_size=1, max_size=40)


@given(changes, st.floats(0, 3))
def test_a_constant_added_to_all_differences_raises_the_floor_by_as_much(changes, added):
    unbounded = replace(ADAPTIVE, max_noise=100.0)
    floor = noise_floor(np.array(changes), unbounded)
    assert noise_floor(np.array(changes) + added, unbounded) == pytest.approx(floor + added)


@given(changes, st.lists(st.floats(2, 9), max_size=60))
def test_cuts_and_motion_in_two_thirds_of_the_differences_leave_the_floor_alone(calm, loud):
    loud = loud[: 2 * (len(calm) - 1)]  # the quantiles, .15 and .3, lie among the calm ones
    floor = noise_floor(np.array([*calm, *loud]), replace(ADAPTIVE, max_noise=100.0))
    assert floor <= 3 * max(calm)  # noise, and two spreads


@pytest.mark.parametrize(
    "levels, lengths",
    [((9,) * 7, (7,)), ((9,), (1,)), ((0, 250) * 3, (1,) * 6), ((0, 0, 0, 200, 200, 0), (3, 2, 1))],
    ids=["still", "one frame", "every frame a cut", "still with cuts"],
)
def test_in_the_limits_the_adaptive_threshold_cuts_as_the_fixed_one(levels, lengths):
    assert segment_scenes(flat(*levels), ADAPTIVE) == segment_scenes(flat(*levels), LITERAL) == lengths


def test_longest_scene_is_bounded():
    assert segment_scenes(flat(*[9] * 7), replace(LITERAL, max_scene_frames=3)) == (3, 3, 1)


@pytest.mark.parametrize("mode, lengths", [("fixed", (2, 2, 2, 1)), ("fixed6", (6, 1))])
def test_fixed_modes_cut_by_count(mode, lengths, random_pixels):
    assert segment_scenes(random_pixels(7), ScenesConfig(mode=mode)) == lengths


@pytest.mark.parametrize("cut", [segment_scenes, segment_scenes_reference])
@pytest.mark.parametrize("mode", ["dynamic", "fixed", "fixed6"])
def test_no_frames_are_refused(cut, mode):
    with pytest.raises(ValueError, match="at least one frame"):
        cut(np.zeros((0, 28, 28, 3), np.uint8), ScenesConfig(mode=mode))


def test_kernel_wants_uint8_and_reference_refuses_nan():
    with pytest.raises(ValueError, match="uint8"):
        segment_scenes(np.zeros((2, 28, 28, 3)), LITERAL)
    with pytest.raises(ValueError, match="NaN"):
        segment_scenes_reference(np.full((2, 28, 28, 3), np.nan), LITERAL)


def test_fingerprint_names_every_parameter():
    others = [
        replace(LITERAL, mode="fixed6"),
        replace(LITERAL, tau=0.25),
        replace(LITERAL, norm="rms"),
        replace(LITERAL, difference_scale=4),
        replace(LITERAL, reference="previous"),
        replace(LITERAL, max_scene_frames=8),
        replace(LITERAL, budget="pairs"),
        replace(LITERAL, init_frames=4),
        replace(LITERAL, unit_gain=False),
        replace(LITERAL, timestamps="none"),
        replace(LITERAL, difference="features"),
        ADAPTIVE,
        replace(ADAPTIVE, noise_quantile=0.1),
        replace(ADAPTIVE, noise_spreads=3.5),
        replace(ADAPTIVE, max_noise=0.5),
    ]
    assert len({fingerprint(scenes) for scenes in [LITERAL, *others]}) == 16
    assert fingerprint(LITERAL) == fingerprint(ScenesConfig(budget="none"))


def test_policies_that_were_made_before_there_were_other_rules_keep_their_fingerprint():
    assert fingerprint(ScenesConfig()) == "d30e5694f0d5"
    assert fingerprint(ScenesConfig(noise_spreads=9.0, max_noise=0.1)) == "d30e5694f0d5"  # of a rule that is off
