"""The baselines of benchmarks/rollout.py: batches of `generate` write what single requests write."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.transformers_rollouts import TransformersEngine, roll_out_batched, roll_out_one_by_one
from envs.initial_observation import CoarseFrameRules
from envs.prompts import encode_reply
from envs.rollout import EpisodeContext
from envs.tools.rules import RetrievalRules
from rl.config.policy import PolicyConfig, ScenesConfig, TinyPolicyConfig
from rl.policy.processor import Processor
from rl.policy.tiny import build_tiny_policy
from rl.trajectory import Completion, GenerateRequest, Sampling
from tests.envs.setting import make_processor, make_reader, make_task, write_clip

GREEDY = Sampling(max_new_tokens=12, temperature=0.0, seed=3)
ROLL_OUT = {"group_size": 2, "sampling": Sampling(64), "seed": 0, "step": 0}


@pytest.fixture(scope="module")
def policy_dir(tmp_path_factory):
    tiny = TinyPolicyConfig(hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1, vocab_size=600)
    return build_tiny_policy(tiny, ScenesConfig(), tmp_path_factory.mktemp("policy") / "tiny", seed=7)


@pytest.fixture(scope="module")
def requests(policy_dir):
    """Three prompts of different lengths, with one and two videos; two of them share a video, one has another limit."""
    processor = Processor.from_pretrained(policy_dir, ScenesConfig())
    rng = np.random.default_rng(0)

    def video(num_frames):
        pixels = rng.integers(0, 256, (num_frames, 56, 56, 3), dtype=np.uint8)
        return processor.make_frames(pixels, [0.5 * i for i in range(num_frames)])

    shared, other = video(4), video(6)
    stops = (processor.ids.fps_close, processor.ids.im_end)
    made = []
    for number, (videos, text, limit) in enumerate([((shared,), 5, 12), ((shared,), 30, 7), ((other, shared), 9, 12)]):
        blocks = [token for frames in videos for token in processor.video_block(frames)]
        prompt = (*blocks, *rng.integers(0, 200, text).tolist())
        own = replace(GREEDY, max_new_tokens=limit, stop_token_ids=stops)
        made.append(GenerateRequest(str(number), prompt, videos, own))
    return made


def test_a_padded_batch_writes_what_each_request_writes_alone(policy_dir, requests):
    engine = TransformersEngine(policy_dir, PolicyConfig())

    batched = engine.generate(requests)

    assert batched == [engine.generate([request])[0] for request in requests]
    assert [len(completion.token_ids) for completion in batched if completion.finish_reason == "length"] == [12, 7, 12]


class Scripted:
    """Answers the first turn of every episode with a call and the second with an answer; keeps the batch sizes."""

    def __init__(self, processor):
        self._processor, self.batches = processor, []

    def generate(self, requests):
        self.batches.append(len(requests))
        return [self._completion(len(request.videos) == 1) for request in requests]

    def _completion(self, is_first):
        text = "<think>Look.<span>2 - 4</span><fps>4</fps>" if is_first else "Red.</think><answer>B</answer>"
        ids = tuple(encode_reply(text, self._processor))
        return Completion(ids, (0.0,) * len(ids), "stop", 0)


@pytest.mark.parametrize(
    ("roll_out", "batches"),
    [
        (roll_out_one_by_one, [1] * 12),
        (lambda tasks, **options: roll_out_batched(tasks, batch=4, **options), [4, 4, 2, 2]),
    ],
    ids=["one by one", "two groups at a time"],
)
def test_groups_are_rolled_out_turn_by_turn(tmp_path, roll_out, batches):
    processor = make_processor(tmp_path)
    engine = Scripted(processor)
    clip = write_clip(tmp_path / "clip.mp4", seconds=8.0, fps=10)
    tasks = [make_task(clip, task_id=str(number)) for number in range(3)]
    with make_reader() as reader:
        coarse = CoarseFrameRules(fps=1.0, min_frames=4, max_frames=8, max_pixels=3136, max_visual_tokens=512)
        context = EpisodeContext(processor, reader, coarse, RetrievalRules(max_pixels=3136), max_model_len=1000)
        groups = roll_out(tasks, generate=engine.generate, context=context, **ROLL_OUT)

    assert engine.batches == batches
    assert [group.task.task_id for group in groups] == ["0", "1", "2"]
    assert all(len(trajectory.granted_calls) == 1 for group in groups for trajectory in group.trajectories_G)
