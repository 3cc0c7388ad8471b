"""Under which settings `dynframe ask` asks: those of training, where they are known; mistakes are told in one line."""

import io
import json
import shutil

import numpy as np
import pytest
from rich.console import Console

from envs.prompts import encode_reply
from envs.synthetic.clip import write_mp4
from rl.checkpoint.checkpoint import RunState
from rl.checkpoint.store import CheckpointStore
from rl.cli.asking import answer, configured, print_answer, require_video, write_page
from rl.config.errors import ConfigError
from rl.config.file import load_config, to_yaml
from rl.config.policy import ScenesConfig, TinyPolicyConfig
from rl.policy.processor import Processor
from tests.fakes import ScriptedEngine
from tests.hub_cache import COMMIT, NAME, put_in_cache


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


def test_a_repository_on_the_hub_is_asked_as_its_files_say(folder, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        configured(NAME, [], best=False)
    cached = put_in_cache(folder, tmp_path / "hub", monkeypatch)
    (cached / "processor_config.json").write_text(
        json.dumps({"episode": {"coarse": {"fps": 1.0}, "retrieval": {"max_calls": 3}, "prompt": {}}})
    )
    for revision in ("main", COMMIT):
        config = configured(NAME, [f"policy.revision={revision}", "video.coarse.max_frames=9"], best=False)
        assert (config.policy.path, config.policy.revision) == (str(cached), "")
        assert (config.policy.scenes.tau, config.video.coarse.fps, config.retrieval.max_calls) == (0.5, 1.0, 3)


def test_a_runs_policy_is_its_checkpoints_whatever_revision_it_began_with(folder, tmp_path):
    store = CheckpointStore(tmp_path / "run")
    begun = store.begin(5)
    shutil.copytree(folder, begun / "policy")
    trained = load_config([], ["rewards.answer.fn=answer", f"policy.path={NAME}", "policy.revision=v1"])
    found = store.commit(begun, RunState(5, 6, seed=0), to_yaml(trained))
    config = configured(str(tmp_path / "run"), [], best=False)
    assert (config.policy.path, config.policy.revision) == (str(found.folder / "policy"), "")


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


@pytest.mark.vllm
def test_an_answer_is_printed_with_its_windows_and_frames_and_written_as_a_page(folder, tmp_path, monkeypatch):
    import actors.engine.engine

    clip, page, console = tmp_path / "clip.mp4", tmp_path / "answer.html", Console(file=io.StringIO(), width=200)
    write_mp4(np.random.default_rng(0).integers(0, 256, (8, 64, 96, 3), dtype=np.uint8).repeat(6, axis=0), 12, clip)
    config = configured(str(folder), [], best=False)
    processor = Processor.from_pretrained(folder, config.policy.scenes)
    replies = ("<think>Unclear.</think><span>1.0 - 3.0</span><fps>4</fps>", "[bold]<answer>B</answer>")
    script = [list(encode_reply(reply, processor)) for reply in replies]
    script[-1].append(processor.ids.im_end)
    asked = []

    class Engine(ScriptedEngine):
        async def generate(self, request):
            asked.append(request.sampling)
            return await self(request)

        def close(self):
            asked.append("closed")

    monkeypatch.setattr(actors.engine.engine, "make_engine", lambda *_, **__: Engine([script]))
    record = answer(config, clip, "What colour?", console, temperature=0.7, seed=3)
    print_answer(record, console)
    write_page(record, page, console)

    printed = console.file.getvalue()
    assert [sampling.temperature for sampling in asked[:-1]] == [0.7, 0.7] and asked[-1] == "closed"
    assert "turn 2: " in printed and "saw 8 frames in " in printed
    assert "was shown 8 frames at 1.00, 1.25, " in printed and "[bold]<answer>B</answer>\n" in printed
    assert record["stop"] == "answered" and record["turns"][0]["call"]["granted_s"] == [1.0, 3.0]
    assert page.read_text().startswith("<!doctype html>") and page.stat().st_size > 20_000
