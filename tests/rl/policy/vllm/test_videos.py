"""Videos as users of vLLM send them become frames with times, or are refused with what to send instead."""

import json

import numpy as np
import pytest

from rl.config.policy import ScenesConfig, TinyPolicyConfig
from rl.policy.processor import Processor

pytestmark = pytest.mark.vllm

MAX_PIXELS = 12_544


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    from rl.policy.tiny import build_tiny_policy

    scenes = ScenesConfig()
    sizes = TinyPolicyConfig(hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1)
    return Processor.from_pretrained(build_tiny_policy(sizes, scenes, tmp_path_factory.mktemp("policy"), 0), scenes)


@pytest.fixture
def parse(processor):
    from rl.policy.vllm.inputs import SceneParser

    parser = SceneParser(processor, MAX_PIXELS)
    return lambda **data: parser.parse_mm_data(data)


def noise(frames=4, height=56, width=84, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def as_tensor(pixels):
    import torch

    return torch.from_numpy(pixels)


@pytest.mark.parametrize(
    "metadata",
    [
        {"times_s": [0.0, 0.5, 1.0, 1.5]},
        {"frames_indices": [0, 15, 30, 45], "fps": 30.0, "total_num_frames": 60, "duration": 2.0},
        {"fps": 2, "total_num_frames": 4},  # the whole source
    ],
)
@pytest.mark.parametrize("form", [np.asarray, list, as_tensor, lambda pixels: as_tensor(pixels).permute(0, 3, 1, 2)])
def test_frames_with_metadata_are_the_frames_of_training(processor, parse, metadata, form):
    items = parse(video=[(form(noise()), metadata)])["video"]

    ours = processor.make_frames(noise(), [0.0, 0.5, 1.0, 1.5])
    assert np.array_equal(items[0]().patches_ND, processor.pack(ours).patches_ND)
    assert items[0]().times_s_K == processor.pack(ours).times_s_K
    assert items.get_item_for_hash(0) == ours.digest


def test_the_same_frames_at_other_times_are_another_video(parse):
    one, other = (parse(video=(noise(), {"times_s": [start, start + 1, start + 2, start + 3]})) for start in (0.0, 1.0))
    assert one["video"].get_item_for_hash(0) != other["video"].get_item_for_hash(0)


def test_what_vllm_loads_from_a_file_is_told_apart_by_its_frames_not_by_its_bytes(parse):
    from vllm.multimodal.media import MediaWithBytes

    def loaded(metadata):
        return MediaWithBytes((noise(), metadata), b"the same file")

    one = parse(video=[loaded({"fps": 2.0, "frames_indices": [0, 1, 2, 3]})])["video"]
    other = parse(video=[loaded({"fps": 2.0, "frames_indices": [4, 5, 6, 7]})])["video"]
    assert one.get_item_for_hash(0) != other.get_item_for_hash(0)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (56, 84, (56, 84)),  # cut to the policy's size by whoever sent it
        (60, 90, (56, 84)),
        (224, 336, (84, 112)),  # larger than a frame may be
    ],
)
def test_frames_are_resized_to_the_size_of_training(processor, parse, height, width, expected):
    video = parse(video=(noise(1, height, width), {"times_s": [0.0]}))["video"][0]()
    assert (video.grid_h * 14, video.grid_w * 14) == expected == processor.fit(height, width, MAX_PIXELS)


def test_a_plain_picture_stays_plain_when_it_is_resized():
    from rl.policy.given_frames import resized

    plain = np.full((2, 60, 90, 3), (10, 100, 200), np.uint8)
    assert np.abs(resized(plain, (56, 84)).astype(int) - (10, 100, 200)).max() <= 1


def test_packers_pass_and_a_video_named_by_its_uuid_alone_has_no_frames(parse):
    def pack():
        raise AssertionError("packed before it is needed")

    items = parse(video=[pack, None])["video"]
    assert items[0] is pack
    assert items[1] is None
    assert items.get_item_for_hash(0) is pack


@pytest.mark.parametrize(
    ("video", "said"),
    [
        (noise(), "a video without times"),
        ((noise(), {}), "no times follow"),
        ((noise(), {"fps": 30.0, "total_num_frames": 60}), "no times follow"),
        ((noise(), {"fps": 0.0, "frames_indices": [0, 1, 2, 3]}), "no times follow"),
        ((noise(), {"fps": 2.0, "frames_indices": [0, 1, 2]}), "as many frames_indices"),
        ((noise(), {"times_s": [0.0, 2.0, 1.0, 3.0]}), "in order"),
        ((noise(), {"times_s": [0.0, 1.0, 2.0, float("nan")]}), "in order"),
        ((noise(1), {"times_s": 0.0}), "times_s must be numbers in one dimension"),
        ((noise(1), {"times_s": np.zeros(())}), "times_s must be numbers in one dimension"),
        ((noise(1), {"times_s": [[0.0]]}), "times_s must be numbers in one dimension"),
        ((noise(1), {"times_s": np.zeros((1, 1))}), "times_s must be numbers in one dimension"),
        ((noise(2), {"times_s": [[0.0], 1.0]}), "times_s must be numbers in one dimension"),
        ((noise(2), {"times_s": ["now", "then"]}), "times_s must be numbers in one dimension"),
        ((noise(1), {"fps": 2.0, "frames_indices": 0}), "frames_indices must be numbers in one dimension"),
        ((noise(1), {"fps": 2.0, "frames_indices": [float("inf")]}), "frames_indices must be numbers in one dim"),
        ((noise() / 255, {"times_s": [0.0, 1.0, 2.0, 3.0]}), "uint8"),
        ((noise()[..., :1], {"times_s": [0.0, 1.0, 2.0, 3.0]}), "T, H, W, 3"),
        ((noise(0), {"times_s": []}), "T, H, W, 3"),
        ("clip.mp4", "a video without times"),
    ],
)
def test_what_is_no_video_with_times_is_refused_with_what_to_send(parse, video, said):
    with pytest.raises(ValueError, match=said) as refused:
        parse(video=video)
    assert "times_s" in str(refused.value)


def test_images_are_refused_by_name(parse):
    with pytest.raises(ValueError, match=r"images are not taken.*video of one frame"):
        parse(image=noise(1)[0])


def test_what_a_folder_says_of_its_episodes_counts_and_defaults_where_it_says_nothing(tmp_path):
    from rl.policy.episode_settings import EpisodeSettings
    from rl.policy.token_ids import PolicyFilesError

    assert EpisodeSettings.of(tmp_path) == EpisodeSettings()
    path = tmp_path / "processor_config.json"
    path.write_text("{}")  # of a stock processor
    assert EpisodeSettings.of(tmp_path) == EpisodeSettings()
    path.write_text(json.dumps({"episode": {"coarse": {"fps": 1.0}, "retrieval": {"max_calls": 3}, "prompt": {}}}))
    settings = EpisodeSettings.of(tmp_path)
    assert (settings.coarse.fps, settings.retrieval.max_calls, settings.prompt.system) == (1.0, 3, "")
    path.write_text(json.dumps({"episode": {"coarse": {}, "retrieval": {"max_call": 1}, "prompt": {}}}))
    with pytest.raises(PolicyFilesError, match=r"processor_config\.json: .*max_call"):
        EpisodeSettings.of(tmp_path)
