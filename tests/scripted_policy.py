"""A tiny policy that says given words about one clip, greedily: its head is solved for them, and nothing is trained.

What it sees still decides what it says: other frames, times or tokens give other hidden states, and other words.

Legend: T tokens of the trajectory · S of them said by the policy · E hidden size · V vocabulary.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from envs.initial_observation import CoarseFrameRules
from envs.prompts import PromptFormat, encode_reply
from envs.rollout import EpisodeContext, run_group
from envs.tools.rules import RetrievalRules
from envs.video.reader import VideoReader
from rl.config.policy import ScenesConfig, TinyPolicyConfig
from rl.policy.model import load_policy
from rl.policy.processor import Processor
from rl.trajectory import Frames, Sampling, TrajectoryGroup, Turn, VideoTask, trajectory_tokens, trajectory_videos
from tests.fakes import ScriptedEngine

MARGIN = 12.0  # nat between the word that is said and the others, about
DAMPING = 1e-3


def scripted_policy(
    folder: Path, task: VideoTask, replies: tuple[str, ...], *, family: str, form: PromptFormat | None = None
) -> TrajectoryGroup:
    """Build a policy in `folder` that answers `task` with `replies`, one a turn; returns what it will roll out.

    Args:
        replies: each but the last ends in `</fps>`, the last in `<|im_end|>`.
    """
    from rl.policy.tiny import build_tiny_policy

    scenes = ScenesConfig()
    sizes = TinyPolicyConfig(family=family, vision_layers=3 if family == "qwen3_vl" else 2)
    build_tiny_policy(sizes, scenes, folder, seed=0)
    processor = Processor.from_pretrained(folder, scenes)
    script = [_words(reply, processor) for reply in replies]
    with VideoReader(workers=0) as reader:
        context = EpisodeContext(
            processor, reader, CoarseFrameRules(), RetrievalRules(), max_model_len=4096, form=form or PromptFormat()
        )
        group = asyncio.run(
            run_group(
                task,
                group_size=1,
                sampling=Sampling(256),
                generate=ScriptedEngine([script]),
                episode_context=context,
                seed=0,
                step=0,
            )
        )
    _solve_head(folder, processor, group)
    return group


def _words(reply: str, processor: Processor) -> list[int]:
    text = reply.removesuffix("<|im_end|>")
    return [*encode_reply(text, processor), *([processor.ids.im_end] if text != reply else [])]


@torch.no_grad()
def _solve_head(folder: Path, processor: Processor, group: TrajectoryGroup) -> None:
    """Rows of the head such that each said token is the likeliest at its place: ridge regression on hidden states."""
    (trajectory,) = group.trajectories_G
    token_ids, places_S = trajectory_tokens(trajectory), []
    length = 0
    for turn in trajectory.turns:
        said = range(length + len(turn.context_token_ids), length := length + len(_tokens_of(turn)))
        places_S += said
    before_S = [place - 1 for place in places_S]
    videos = trajectory_videos(group.coarse_frames, trajectory.turns)
    hidden_SE = _hidden_states(folder, processor, token_ids, videos)[before_S].double()
    weights = load_file(folder / "model.safetensors")
    wanted_SV = torch.zeros(len(places_S), len(weights["lm_head.weight"]), dtype=torch.float64)
    wanted_SV[range(len(places_S)), [token_ids[place] for place in places_S]] = MARGIN
    gram_SS = hidden_SE @ hidden_SE.T
    gram_SS += DAMPING * gram_SS.diagonal().mean() * torch.eye(len(places_S), dtype=torch.float64)
    weights["lm_head.weight"] = (hidden_SE.T @ torch.linalg.solve(gram_SS, wanted_SV)).T.float().contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _tokens_of(turn: Turn) -> tuple[int, ...]:
    return (*turn.context_token_ids, *turn.completion.token_ids)


def _hidden_states(
    folder: Path, processor: Processor, token_ids: tuple[int, ...], videos: tuple[Frames, ...]
) -> torch.Tensor:
    """What the head reads at every token (T, E)."""
    model, read = load_policy(folder, processor.scenes), []
    model.lm_head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    positions_3T = torch.from_numpy(processor.positions(token_ids, videos))
    model(torch.tensor([token_ids]), None, positions_3T[:, None], [processor.pack(video) for video in videos])
    return read[0][0]
