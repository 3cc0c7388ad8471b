"""What makes training samples of a run's supervised examples, in the workers that do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from envs.data.conversation_rows import Conversation
from envs.data.conversations import ImageRules, conversation_sample
from envs.data.formats import RetrievalTrace
from envs.data.traces import trace_to_trajectory
from rl.config.run import RunConfig
from rl.learner.sft import supervised_sample
from rl.policy.scenes import image_frames
from rl.run.prepare.episode_context import make_episode_context
from rl.trajectory import TrainingSample, TrajectoryGroup

Example = Conversation | RetrievalTrace


def make_encoder(config: RunConfig, policy_dir: Path, max_tokens: int) -> Callable[[Example], TrainingSample]:
    """Encodes conversations and retrieval traces; UnusableRow where one cannot be used.

    Args:
        max_tokens: of a sample.
    Raises:
        ConfigError: the policy's files cannot be used.
    """
    context = replace(make_episode_context(config, policy_dir), max_model_len=max_tokens)
    images = ImageRules(image_frames(config.policy.scenes), config.finetune.image_pixels)

    def encode(example: Example) -> TrainingSample:
        if isinstance(example, Conversation):
            return conversation_sample(example, context, images)
        trajectory, coarse_frames = trace_to_trajectory(example, context)
        return supervised_sample(TrajectoryGroup(example.task, (trajectory,), coarse_frames))

    return encode
