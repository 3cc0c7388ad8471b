"""Rollouts with transformers' own `generate`: what a user has without an inference engine.

`roll_out` runs episodes in lock step. Every episode that is not over asks for its next turn, one `generate` answers all
of them as a left-padded batch, the environments insert the frames they were asked for, and so on until all are over.
With one episode at a time this is the DynFrame release's way.

Legend: B requests of a batch · T tokens of the longest prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from envs.env import RetrievalEnv
from envs.initial_observation import make_initial_observation
from envs.rollout import EpisodeContext, derive_seed, make_env
from rl.config.policy import PolicyConfig
from rl.policy.model import load_policy
from rl.policy.processor import PackedVideo, Processor
from rl.trajectory import Completion, GenerateRequest, Sampling, Trajectory, TrajectoryGroup, VideoTask

GenerateBatch = Callable[[Sequence[GenerateRequest]], list[Completion]]


def roll_out_one_by_one(
    tasks: Sequence[VideoTask],
    *,
    generate: GenerateBatch,
    context: EpisodeContext,
    group_size: int,
    sampling: Sampling,
    seed: int,
    step: int,
) -> list[TrajectoryGroup]:
    """One trajectory after the other; every sibling decodes the coarse frames again."""
    groups = []
    for task in tasks:
        trajectories = []
        for sibling in range(group_size):
            initial = _initial(task, context)
            env = make_env(task, initial, context, sampling.max_new_tokens)
            trajectories += _lock_step([(env, task, sibling)], generate, sampling, seed, step)
        groups.append(TrajectoryGroup(task, tuple(trajectories), initial.frames))
    return groups


def roll_out_batched(
    tasks: Sequence[VideoTask],
    *,
    generate: GenerateBatch,
    context: EpisodeContext,
    group_size: int,
    batch: int,
    sampling: Sampling,
    seed: int,
    step: int,
) -> list[TrajectoryGroup]:
    """Whole groups, as many at a time as fit into `batch` trajectories; siblings share the decoded coarse frames."""
    groups, at_a_time = [], max(1, batch // group_size)
    for first in range(0, len(tasks), at_a_time):
        part = tasks[first : first + at_a_time]
        initials = [_initial(task, context) for task in part]
        episodes = [
            (make_env(task, initial, context, sampling.max_new_tokens), task, sibling)
            for task, initial in zip(part, initials, strict=True)
            for sibling in range(group_size)
        ]
        trajectories = _lock_step(episodes, generate, sampling, seed, step)
        for index, (task, initial) in enumerate(zip(part, initials, strict=True)):
            siblings = trajectories[index * group_size : (index + 1) * group_size]
            groups.append(TrajectoryGroup(task, tuple(siblings), initial.frames))
    return groups


class TransformersEngine:
    """Completions of a batch of requests by `generate`: every prompt is prefilled whole, then continued with its KV
    cache. Videos that are equal within a batch are encoded once."""

    def __init__(self, policy_dir: Path, policy: PolicyConfig) -> None:
        self._model = load_policy(policy_dir, policy.scenes, policy.dtype).eval()
        self._processor = Processor.from_pretrained(policy_dir, policy.scenes)
        self._banned = (~torch.from_numpy(self._processor.allowed_token_mask())).nonzero().flatten().tolist()

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """Sample all of them in one call; log-probs are not computed (0)."""
        sampling = requests[0].sampling  # temperature and stop tokens are those of all
        limits = [request.sampling.max_new_tokens for request in requests]
        prompt_BT, mask_BT, positions_3BT = self._padded(requests)
        torch.manual_seed(sampling.seed)
        drawing = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
        with torch.inference_mode():
            whole = self._model.generate(
                prompt_BT,
                attention_mask=mask_BT,
                position_ids=positions_3BT,
                videos=self._videos(requests),
                max_new_tokens=max(limits),
                stopping_criteria=StoppingCriteriaList([_OwnLimit(prompt_BT.shape[1], limits)]),
                eos_token_id=list(sampling.stop_token_ids),
                pad_token_id=self._processor.ids.pad,
                suppress_tokens=self._banned,
                **(drawing if sampling.temperature > 0 else {"do_sample": False}),
            )
        rows = whole[:, prompt_BT.shape[1] :].tolist()
        return [_completion(row, request.sampling) for row, request in zip(rows, requests, strict=True)]

    def _padded(self, requests: Sequence[GenerateRequest]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Prompts (B, T), attention mask (B, T) and positions (3, B, T), padded on the left."""
        longest = max(len(request.prompt_token_ids) for request in requests)
        prompt_BT = torch.full((len(requests), longest), self._processor.ids.pad)
        mask_BT = torch.zeros((len(requests), longest), dtype=torch.long)
        positions_3BT = torch.zeros((3, len(requests), longest), dtype=torch.long)
        for row, request in enumerate(requests):
            first = longest - len(request.prompt_token_ids)
            prompt_BT[row, first:] = torch.tensor(request.prompt_token_ids)
            mask_BT[row, first:] = 1
            positions_3T = self._processor.positions(request.prompt_token_ids, request.videos)
            positions_3BT[:, row, first:] = torch.from_numpy(positions_3T)
        return prompt_BT, mask_BT, positions_3BT

    def _videos(self, requests: Sequence[GenerateRequest]) -> list[PackedVideo]:
        packed: dict[str, PackedVideo] = {}
        for frames in (frames for request in requests for frames in request.videos):
            if frames.digest not in packed:
                packed[frames.digest] = self._processor.pack(frames)
        return [packed[frames.digest] for request in requests for frames in request.videos]


class _OwnLimit(StoppingCriteria):
    """Rows stop at their own number of new tokens."""

    def __init__(self, prompt_tokens: int, limits: Sequence[int]) -> None:
        self._end_B = torch.tensor(limits) + prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        return input_ids.shape[1] >= self._end_B.to(input_ids.device)


def _completion(row: Sequence[int], sampling: Sampling) -> Completion:
    """A row up to its stop token or its limit, without the padding behind it."""
    stops = [index for index, token in enumerate(row) if token in sampling.stop_token_ids]
    end = min([*(index + 1 for index in stops), sampling.max_new_tokens])
    token_ids = tuple(row[:end])
    finish_reason = "stop" if token_ids[-1] in sampling.stop_token_ids else "length"
    return Completion(token_ids, (0.0,) * len(token_ids), finish_reason, policy_version=0)


def _lock_step(
    episodes: Sequence[tuple[RetrievalEnv, VideoTask, int]],
    generate: GenerateBatch,
    sampling: Sampling,
    seed: int,
    step: int,
) -> list[Trajectory]:
    """All episodes to their ends, turn by turn. An episode is its environment, its task and the sibling's number."""
    outcomes, turn = [env.reset() for env, _, _ in episodes], 0
    while asking := [index for index, outcome in enumerate(outcomes) if not isinstance(outcome, Trajectory)]:
        requests = []
        for env, task, sibling in (episodes[index] for index in asking):
            own = Sampling(
                env.new_tokens_left,
                sampling.temperature,
                stop_token_ids=env.stop_token_ids,
                seed=derive_seed(seed, step, task.task_id, sibling, turn),
            )
            requests.append(GenerateRequest(f"{task.task_id}/{sibling}/{turn}", env.token_ids, env.videos, own))
        for index, completion in zip(asking, generate(requests), strict=True):
            outcomes[index] = episodes[index][0].step(completion)
        turn += 1
    return outcomes


def _initial(task: VideoTask, context: EpisodeContext):
    return make_initial_observation(
        task,
        processor=context.processor,
        reader=context.reader,
        rules=context.coarse,
        form=context.form,
        look_pixels=context.retrieval.look_pixels,
    )
