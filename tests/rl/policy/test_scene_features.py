"""Frames compared by the vision tower's first block: numpy gives what the tower gives, a clip is cut alike for ever."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rl.config.errors import ConfigError
from rl.config.policy import PolicyConfig, ScenesConfig, TinyPolicyConfig
from rl.policy.convert import convert_stock_checkpoint
from rl.policy.feature_file import write_features
from rl.policy.model import load_policy, save_policy
from rl.policy.processor import Processor
from rl.policy.scene_features import FEATURE_FILE, SceneFeatures
from rl.policy.scenes import segment_scenes
from rl.policy.structure import structure_of
from rl.policy.tiny import build_tiny_policy
from rl.policy.token_ids import PolicyFilesError
from rl.policy.vision_tower import embed, grid_of

SCENES = ScenesConfig(difference="features", budget="none")
FAMILIES = ("qwen2_5_vl", "qwen3_vl")
ROWS, COLUMNS, MERGE = 10, 14, 2  # patches of a frame: several windows, those at the far edges smaller


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    sizes = TinyPolicyConfig(family=request.param)
    return build_tiny_policy(sizes, SCENES, tmp_path_factory.mktemp("policy"), seed=1)


@pytest.fixture
def processor(folder):
    return Processor.from_pretrained(folder, SCENES)


def noise_frames(processor, count, seed=0):
    patch = processor.geometry.patch
    return np.random.default_rng(seed).integers(0, 256, (count, ROWS * patch, COLUMNS * patch, 3), dtype=np.uint8)


def of_the_tower(model, packed):
    """(T, N, C) after the first block, patches in the order of the tower; and which row-by-row patch each one is."""
    visual = model.model.visual
    visual.blocks, visual.deepstack_visual_indexes = visual.blocks[:1], []
    with torch.no_grad():
        (hidden_NC,) = visual.trunk(embed(visual, [packed]), [grid_of(packed)])
    places = np.arange(ROWS * COLUMNS).reshape(ROWS // MERGE, MERGE, COLUMNS // MERGE, MERGE).transpose(0, 2, 1, 3)
    places = places.reshape(-1, MERGE**2)
    if hasattr(visual, "_windows"):
        in_windows, _ = visual._windows([grid_of(packed)])
        places = places[in_windows[: len(places)].numpy()]
    return hidden_NC.numpy().reshape(packed.num_scenes, ROWS * COLUMNS, -1), places.reshape(-1)


def test_features_are_those_of_the_towers_first_block(folder, processor):
    pixels_THWC = noise_frames(processor, 3)
    frames = processor.make_frames(pixels_THWC, (0.0, 1.0, 2.0))
    one_by_one = processor.pack(replace(frames, scene_lengths=(1, 1, 1)))
    expected_TNC, places_N = of_the_tower(load_policy(folder, SCENES), one_by_one)
    features = SceneFeatures.read(folder)
    found_TNC = np.stack([features.of(pixels_HWC)[places_N] for pixels_HWC in pixels_THWC])
    assert np.abs(expected_TNC).max() > 1
    assert found_TNC == pytest.approx(expected_TNC, abs=2e-5)


def test_the_file_holds_what_the_memory_plan_counts(folder):
    with np.load(folder / FEATURE_FILE, allow_pickle=False) as stored:
        values = sum(stored[name].size for name in stored.files if name != "shape")
    assert structure_of(folder, PolicyConfig(scenes=SCENES)).tower.feature_parameters == values


def test_differences_are_distances_of_unit_vectors(folder, processor):
    frames_THWC = noise_frames(processor, 3)
    frames_THWC[1] = frames_THWC[0]
    change = SceneFeatures.read(folder).changes(frames_THWC)
    assert change(0, 1) == 0
    assert 0.2 < change(0, 2) == change(2, 0) < SceneFeatures.LARGEST_CHANGE


def test_a_clip_is_cut_where_its_features_change(processor):
    first, second = noise_frames(processor, 2)
    still_with_a_cut = np.stack([first, first, first, second, second])
    frames = processor.make_frames(still_with_a_cut, (0.0, 1.0, 2.0, 3.0, 4.0))
    assert frames.scene_lengths == (3, 2)


@pytest.mark.parametrize("threshold", ["fixed", "adaptive"])
def test_the_budget_and_the_adaptive_threshold_hold_for_features_too(folder, processor, threshold):
    rule = replace(SCENES, budget="pairs", threshold=threshold)
    lengths = segment_scenes(noise_frames(processor, 7), rule, SceneFeatures.read(folder))
    assert sum(lengths) == 7 and len(lengths) <= 4


def test_training_the_tower_does_not_change_where_clips_are_cut(folder, processor, tmp_path):
    model = load_policy(folder, SCENES)
    with torch.no_grad():
        for parameter in model.model.visual.parameters():
            parameter.mul_(1.5)
    save_policy(model, processor, tmp_path)
    trained = Processor.from_pretrained(tmp_path, SCENES)
    frames_THWC, times_s = noise_frames(processor, 4), (0.0, 1.0, 2.0, 3.0)
    assert trained.make_frames(frames_THWC, times_s).digest == processor.make_frames(frames_THWC, times_s).digest
    write_features(tmp_path)  # those of the trained tower name another encoder
    other = Processor.from_pretrained(tmp_path, SCENES)
    assert other.digest_prefix != processor.digest_prefix
    assert other.make_frames(frames_THWC, times_s).digest != processor.make_frames(frames_THWC, times_s).digest


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stock_checkpoint_is_given_its_features_when_it_is_converted(family, tmp_path):
    sizes = TinyPolicyConfig(family=family)
    stock = build_tiny_policy(sizes, SCENES, tmp_path / "stock", seed=1, stock=True)
    converted = convert_stock_checkpoint(stock, tmp_path / "ours", SCENES)
    built = build_tiny_policy(sizes, SCENES, tmp_path / "built", seed=1)  # the same function (tests of tiny policies)
    frame_HWC = noise_frames(Processor.from_pretrained(converted, SCENES), 1)[0]
    ours, theirs = (SceneFeatures.read(place).of(frame_HWC) for place in (converted, built))
    assert ours == pytest.approx(theirs, abs=1e-5)
    by_pixels = convert_stock_checkpoint(stock, tmp_path / "pixels", ScenesConfig())
    assert not (by_pixels / FEATURE_FILE).exists()


def test_a_folder_without_its_features_or_with_damaged_ones_is_refused_with_file_key_and_remedy(folder, tmp_path):
    with pytest.raises(PolicyFilesError, match=r"scene_features.npz: no such file.*policy.scenes.difference=features"):
        SceneFeatures.read(tmp_path)
    (tmp_path / FEATURE_FILE).write_bytes((folder / FEATURE_FILE).read_bytes()[:-200])
    with pytest.raises(PolicyFilesError, match=r"scene_features.npz: cannot be read .* copy it again"):
        SceneFeatures.read(tmp_path)


def test_features_are_needed_where_they_are_asked_for(random_pixels):
    with pytest.raises(ValueError, match="needs the features"):
        segment_scenes(random_pixels(2), SCENES)


@pytest.mark.parametrize("other", [{"mode": "fixed"}, {"difference_scale": 4}, {"norm": "rms"}])
def test_what_features_have_no_use_for_is_refused(other):
    with pytest.raises(ConfigError, match="difference=features"):
        ScenesConfig(difference="features", **other)
