"""Groups of siblings: one initial observation shared by all, each running its own episode against the engine.

Legend: G siblings of one task.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Protocol

from envs.clip_failures import clip_failure
from envs.env import RetrievalEnv, TokenBudget, video_error_trajectory
from envs.initial_observation import CoarseFrameRules, InitialObservation, VideoReader, make_initial_observation
from envs.prompts import PromptFormat, VideoProcessor
from envs.tools.rules import RetrievalRules
from envs.tools.toolbox import Toolbox
from envs.video.file import VideoError
from rl.trajectory import (
    Completion,
    GenerateRequest,
    Sampling,
    Trajectory,
    TrajectoryGroup,
    VideoTask,
)

GROUPS_PER_ATTEMPT = 1_000_000  # more than one task is ever drawn at a time
SampledTurns = Mapping[int, Sequence[Completion | None]]  # by sibling, in order of turns; None at the end: it is over
NO_TURNS: SampledTurns = MappingProxyType({})


class Generate(Protocol):
    """An engine: token ids and videos in, sampled tokens with their log-probs out. Many calls at once are normal."""

    async def __call__(self, request: GenerateRequest) -> Completion: ...


@dataclass(frozen=True, slots=True)
class EpisodeContext:
    """What every episode of a run has in common."""

    processor: VideoProcessor
    reader: VideoReader
    coarse: CoarseFrameRules
    retrieval: RetrievalRules
    max_model_len: int  # tokens of a whole trajectory
    form: PromptFormat = field(default_factory=PromptFormat)
    tools: Toolbox | None = None  # None: the built-in ones that `retrieval` names


class TokenHistory:
    """The completions of a group's siblings so far: enough to continue the group on another worker.

    Frames are not in it. They are decoded again, and are the same.
    """

    def __init__(self, sampled: SampledTurns = NO_TURNS) -> None:
        """
        Args:
            sampled: completions of the turns that are over, by sibling.
        """
        self._sampled = {sibling: [turn for turn in turns if turn is not None] for sibling, turns in sampled.items()}
        self._ended = {sibling for sibling, turns in sampled.items() if turns and turns[-1] is None}
        self._new: list[tuple[int, int, Completion]] = []
        self.advances = 0  # grows with everything that is finished: the initial observation, a turn

    def turn(self, sibling: int, turn: int) -> Completion | None:
        """A sibling's completion at a turn, if that is over."""
        completions = self._sampled.get(sibling, ())
        return completions[turn] if turn < len(completions) else None

    def is_over(self, sibling: int, turn: int) -> bool:
        """Whether a sibling's trajectory had ended before this turn: nothing more may be sampled for it."""
        return sibling in self._ended and self.turn(sibling, turn) is None

    def add(self, sibling: int, completion: Completion) -> None:
        """A sibling's next turn."""
        completions = self._sampled.setdefault(sibling, [])
        self._new.append((sibling, len(completions), completion))
        completions.append(completion)

    def take_new(self) -> list[tuple[int, int, Completion]]:
        """Turns added since the last call of this method, in order: sibling, number of the turn, completion."""
        new, self._new = self._new, []
        return new


async def run_group(
    task: VideoTask,
    *,
    group_size: int,
    sampling: Sampling,
    generate: Generate,
    episode_context: EpisodeContext,
    seed: int,
    step: int,
    occurrence: int = 0,
    history: TokenHistory | None = None,
) -> TrajectoryGroup:
    """Roll out G siblings of a task at once. The coarse frames are decoded, cut into scenes and stored once for all.

    A video that cannot be read gives G trajectories that ended in VIDEO_ERROR. Everything else that goes wrong raises,
    after the other siblings have been stopped.

    Args:
        sampling: `max_new_tokens` is of a whole trajectory; stop tokens and seed are set here.
        seed: of the run; with step, task, occurrence, sibling and turn it determines the seed of every engine call.
        occurrence: which of the step's groups of this task it is, see `occurrences`.
        history: turns in it are not sampled again; new ones are added to it.
    """
    history = TokenHistory() if history is None else history
    try:
        initial = await asyncio.to_thread(
            make_initial_observation,
            task,
            processor=episode_context.processor,
            reader=episode_context.reader,
            rules=episode_context.coarse,
            form=episode_context.form,
            look_pixels=episode_context.retrieval.look_pixels,
        )
    except VideoError as error:
        lost = video_error_trajectory([], episode_context.processor, clip_failure(error, window=None))
        return TrajectoryGroup(task, (lost,) * group_size, coarse_frames=None)
    history.advances += 1
    envs = [make_env(task, initial, episode_context, sampling.max_new_tokens) for _ in range(group_size)]
    name = f"{step}/{task.task_id}/{uuid.uuid4().hex[:8]}"  # one task may be rolled out twice at a time
    clocked = [_Stopwatch(generate) for _ in envs]
    trajectories_G = await _all_or_none(
        run_episode(
            env,
            generate=clocked[sibling],
            sampling=sampling,
            name=f"{name}/{sibling}",
            sibling=sibling,
            history=history,
            seed_of_turn=lambda turn, sibling=sibling: derive_seed(seed, step, task.task_id, sibling, turn, occurrence),
        )
        for sibling, env in enumerate(envs)
    )
    seconds = {
        "decode": initial.decode_s + sum(env.seconds["decode"] for env in envs),
        "segment": initial.segment_s + sum(env.seconds["segment"] for env in envs),
        "generate": max(stopwatch.seconds for stopwatch in clocked),  # of the sibling that waited longest
    }
    return TrajectoryGroup(task, tuple(trajectories_G), initial.frames, initial.clip.duration_s, seconds)


async def run_episode(
    env: RetrievalEnv,
    *,
    generate: Generate,
    sampling: Sampling,
    name: str,
    sibling: int,
    history: TokenHistory,
    seed_of_turn: Callable[[int], int],
) -> Trajectory:
    """Run one episode to its end. What the environment has to decode, it decodes off the event loop."""
    outcome, turn = env.reset(), 0
    while not isinstance(outcome, Trajectory):
        if history.is_over(sibling, turn):
            return env.stop_early()
        request = GenerateRequest(
            request_id=f"{name}/{turn}",
            prompt_token_ids=env.token_ids,
            videos=env.videos,
            sampling=replace(
                sampling,
                max_new_tokens=env.new_tokens_left,
                stop_token_ids=env.stop_token_ids,
                seed=seed_of_turn(turn),
            ),
        )
        completion = history.turn(sibling, turn)
        if completion is None:
            completion = await generate(request)
            history.add(sibling, completion)
        outcome = await asyncio.to_thread(env.step, completion) if env.may_look(completion) else env.step(completion)
        turn += 1
        history.advances += 1
    return outcome


def make_env(
    task: VideoTask, initial: InitialObservation, episode_context: EpisodeContext, max_new_tokens: int
) -> RetrievalEnv:
    """A fresh environment for one sibling."""
    return RetrievalEnv(
        task,
        initial,
        processor=episode_context.processor,
        reader=episode_context.reader,
        rules=episode_context.retrieval,
        budget=TokenBudget(max_new_tokens, episode_context.max_model_len),
        tools=episode_context.tools,
    )


def derive_seed(run_seed: int, step: int, task_id: str, sibling: int, turn: int, occurrence: int = 0) -> int:
    """The seed of one engine call, in [0, 2^63): a pure function of what the call is, not of when it runs."""
    named = json.dumps([run_seed, step, task_id, sibling, turn, *([occurrence] if occurrence else [])])
    return int.from_bytes(hashlib.sha256(named.encode()).digest()[:8], "big") >> 1


def occurrences(task_ids: Sequence[str], attempt: int) -> list[int]:
    """Which occurrence of its task in the step each group is, so that a task drawn again is sampled with other seeds.

    Args:
        attempt: 0 for a step's own tasks, 1, 2, ... for the replacements of zero-variance groups.
    """
    seen: Counter[str] = Counter()
    numbers = []
    for task_id in task_ids:
        numbers.append(attempt * GROUPS_PER_ATTEMPT + seen[task_id])
        seen[task_id] += 1
    return numbers


def greedy(sampling: Sampling) -> Sampling:
    """The same allowance, always the likeliest token: for evaluation."""
    return replace(sampling, temperature=0.0, top_p=1.0, top_k=0)


class _Stopwatch:
    """An engine, and how long its caller has waited for it."""

    def __init__(self, generate: Generate) -> None:
        self._generate = generate
        self.seconds = 0.0

    async def __call__(self, request: GenerateRequest) -> Completion:
        started = time.perf_counter()
        completion = await self._generate(request)
        self.seconds += time.perf_counter() - started
        return completion


async def _all_or_none(episodes: Iterable[Coroutine[Any, Any, Trajectory]]) -> list[Trajectory]:
    """Results in order; if one fails, the others are stopped before its error is raised."""
    running = [asyncio.ensure_future(episode) for episode in episodes]
    try:
        return await asyncio.gather(*running)
    finally:
        for episode in running:
            episode.cancel()
        await asyncio.gather(*running, return_exceptions=True)
