"""Files of requests are decoded as in training: the same frames, at the same times, by the same reader."""

import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from envs.initial_observation import CoarseFrameRules, make_initial_observation
from envs.prompts import PromptFormat
from envs.video.reader import VideoReader
from rl.config.policy import ScenesConfig, TinyPolicyConfig
from rl.policy.episode_settings import VIDEO_PROCESSOR
from rl.policy.tiny_tokenizer import tiny_processor
from rl.trajectory import VideoTask

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return tiny_processor(TinyPolicyConfig(), ScenesConfig(), tmp_path_factory.mktemp("policy"))


def in_training(clip, processor, rules):
    """Digests name pixels, times and scenes."""
    with VideoReader(workers=0) as reader:
        task = VideoTask("t", str(clip), "?", "A", "letter")
        return make_initial_observation(
            task, processor=processor, reader=reader, rules=rules, form=PromptFormat()
        ).frames.digest


def loaded(data, processor, **options):
    from rl.policy.vllm.videos import frames_of
    from rl.serving.video_loader import CoarseFramesLoader

    return frames_of(CoarseFramesLoader.load_bytes(data, **options), processor, max_pixels=10**6).digest


def test_a_file_becomes_the_coarse_view_of_training(clip, processor):
    assert loaded(clip.read_bytes(), processor) == in_training(clip, processor, CoarseFrameRules())


def test_the_folder_says_which_view_and_a_request_may_say_otherwise(clip, processor, tmp_path):
    episode = {"coarse": {"fps": 1.0, "max_pixels": 6272}, "retrieval": {}, "prompt": {}}
    (tmp_path / "processor_config.json").write_text(json.dumps({"episode": episode}))
    there = tiny_processor(TinyPolicyConfig(), ScenesConfig(), tmp_path)
    rules = CoarseFrameRules(fps=1.0, max_pixels=6272)
    assert loaded(clip.read_bytes(), there) == in_training(clip, processor, rules)
    asked = loaded(clip.read_bytes(), there, min_frames=2, max_frames=3)
    assert asked == in_training(clip, processor, replace(rules, min_frames=2, max_frames=3))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_frames": 8}, "media_io_kwargs.video.num_frames is not read here; there are fps, min_frames"),
        ({"frame_rate": 8}, "media_io_kwargs.video.frame_rate is not read here"),
        ({"min_frames": 9, "max_frames": 3}, "min_frames <= max_frames"),
        ({"fps": "fast"}, "media_io_kwargs.video: "),
    ],
)
def test_options_that_say_nothing_are_refused(clip, processor, options, said):
    with pytest.raises(ValueError, match=said):
        loaded(clip.read_bytes(), processor, **options)


def test_what_is_no_video_is_refused_without_the_name_of_a_file_of_ours(processor):
    with pytest.raises(ValueError, match=r"^the video ") as refused:
        loaded(b"<html>not found</html>", processor)
    assert "dynframe-video" not in str(refused.value)


def archive(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def test_frames_that_a_client_has_cut_come_through_to_the_bit(processor):
    pixels = np.random.default_rng(1).integers(0, 256, (3, 56, 84, 3), dtype=np.uint8)
    times_s = [0.1, 0.2 + 1e-9, 1 / 3]
    assert (
        loaded(archive(frames=pixels, times_s=np.array(times_s)), processor)
        == processor.make_frames(pixels, times_s).digest
    )


@pytest.mark.parametrize(
    "data", [archive(frames=np.zeros(1)), archive(frames=np.array([{}]), times_s=np.zeros(1)), archive(a=0)[:40]]
)
def test_a_broken_archive_is_refused_and_nothing_in_it_is_run(processor, data):
    with pytest.raises(ValueError, match="needs arrays `frames` and `times_s`"):
        loaded(data, processor)


@pytest.mark.parametrize("shape", [(), (2, 1), (70_000,)])
def test_times_that_are_not_one_per_frame_are_refused_where_they_are_read(processor, shape):
    with pytest.raises(ValueError, match=r"`times_s` of shape \(T\), a time per frame, at most 65536; got \("):
        loaded(archive(frames=np.zeros((2, 56, 56, 3), np.uint8), times_s=np.zeros(shape)), processor)


def members(kind=zipfile.ZIP_DEFLATED, **members) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def test_an_archive_that_unpacks_to_more_than_a_decoder_may_take_is_refused_before_it_is_unpacked(
    processor, monkeypatch
):
    from rl.serving import video_loader

    sound = archive(frames=np.zeros((20, 224, 224, 3), np.uint8), times_s=np.arange(20.0))
    assert len(sound) < 20_000
    assert loaded(sound, processor)  # 3 MiB
    monkeypatch.setattr(video_loader, "MEMORY_MIB", 2)
    monkeypatch.setattr(np, "load", None)
    with pytest.raises(ValueError, match=r"an \.npz of 3 MiB unpacked, at most 2 are taken; send fewer or smaller"):
        loaded(sound, processor)


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packing_that_has_no_bound_is_refused(processor, kind):
    with pytest.raises(ValueError, match="must be stored or deflated"):
        loaded(members(kind, frames=b"", times_s=b""), processor)


def test_members_that_are_no_arrays_are_refused(processor):
    with pytest.raises(ValueError, match="needs arrays `frames` and `times_s`, as numpy"):
        loaded(members(frames=b"pixels", times_s=b"times"), processor)


def test_vllm_chooses_this_decoder_by_what_an_export_writes_into_its_folder():
    from importlib.metadata import entry_points

    from vllm.multimodal.video import get_video_loader_backend_for_processor

    (found,) = (point for point in entry_points(group="vllm.general_plugins") if point.name == "dynframe_videos")
    found.load()()
    assert get_video_loader_backend_for_processor(VIDEO_PROCESSOR) == "dynframe"
