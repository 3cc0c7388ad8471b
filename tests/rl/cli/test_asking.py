"""Under which settings `dynframe ask` asks: those of training, where they are known; mistakes are told in one line."""

import json

import pytest

from rl.cli.asking import configured, require_video
from rl.config.errors import ConfigError
from rl.config.policy import ScenesConfig, TinyPolicyConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A policy of ours with its own scenes, as an export leaves it."""
    from rl.policy.tiny import build_tiny_policy

    folder = tmp_path_factory.mktemp("policy") / "exported"
    return build_tiny_policy(TinyPolicyConfig(), ScenesConfig(tau=0.5), folder, seed=0)


def test_an_export_is_asked_as_it_was_trained(folder):
    episode = {"coarse": {"fps": 1.0}, "retrieval": {"max_calls": 3}, "prompt": {"instructions": ' "Look."\n'}}
    (folder / "processor_config.json").write_text(json.dumps({"episode": episode}))
    config = configured(str(folder), ["video.coarse.max_frames=9"], best=False)
    assert (config.policy.path, config.policy.scenes.tau, config.policy.dtype) == (str(folder), 0.5, "float32")
    assert (config.video.coarse.fps, config.video.coarse.max_frames, config.retrieval.max_calls) == (1.0, 9, 3)
    assert config.prompt.instructions == ' "Look."\n' and not config.cold_start.enabled


def test_a_folder_that_says_nothing_has_room_for_a_video_and_an_answer(folder):
    (folder / "processor_config.json").unlink(missing_ok=True)
    config = configured(str(folder), ["policy.dtype=bfloat16"], best=False)
    assert (config.rollout.engine.max_model_len, config.rollout.max_new_tokens) == (4096, 1024)
    assert config.policy.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (lambda folder, tmp_path: tmp_path / "nowhere", "policy.path: no folder "),
        (lambda folder, tmp_path: tmp_path, "the folder is empty"),
        (lambda folder, tmp_path: folder / "config.json", "is a file"),
    ],
)
def test_what_is_no_policy_is_refused_before_an_engine_starts(folder, tmp_path, policy, said):
    with pytest.raises(ConfigError, match=said):
        configured(str(policy(folder, tmp_path)), [], best=False)


def test_best_is_of_a_run(folder):
    with pytest.raises(ConfigError, match="--best is of a run"):
        configured(str(folder), [], best=True)


@pytest.mark.parametrize("content", [None, b"", b"<html></html>", json.dumps({}).encode()])
def test_what_is_no_video_is_refused_before_an_engine_starts(folder, tmp_path, content):
    video = tmp_path / "clip.mp4"
    if content is not None:
        video.write_bytes(content)
    with pytest.raises(ConfigError, match=r"clip\.mp4: "):
        require_video(configured(str(folder), [], best=False), video)
