"""Groups of siblings: one opening shared by all, each playing its own episode against the engine.

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

from envs.env import RetrievalEnv, TokenBudget, video_error_note
from envs.initial_observation import CoarseFrameRules, Opening, VideoReader, open_clip
from envs.prompts import PromptFormat, VideoProcessor
from envs.retrieval import RetrievalRules
from envs.video.reader import VideoError
from rl.trajectory import (
    Completion,
    GenerateRequest,
    Sampling,
    StopReason,
    Trajectory,
    TrajectoryGroup,
    VideoTask,
)

GROUPS_PER_ATTEMPT = 1_000_000  # more than one task is ever drawn at a time
Said = Mapping[int, Sequence[Completion | None]]  # by sibling, turn by turn; None at the end: it said no more than that
NOTHING_SAID: Said = MappingProxyType({})


class Generate(Protocol):
    """An engine: token ids and videos in, sampled tokens with their log-probs out. Many calls at once are normal."""

    async def __call__(self, request: GenerateRequest) -> Completion: ...


@dataclass(frozen=True, slots=True)
class EpisodeContext:
    """What every episode of a run has in common."""

    processor: VideoProcessor
    reader: VideoReader
    opening: CoarseFrameRules
    retrieval: RetrievalRules
    max_model_len: int  # tokens of a whole trajectory
    form: PromptFormat = field(default_factory=PromptFormat)


class TokenHistory:
    """What a group's siblings have said so far, turn by turn: enough to go on with the group somewhere else.

    Frames are not in it. They are decoded again, and are the same.
    """

    def __init__(self, said: Said = NOTHING_SAID) -> None:
        """
        Args:
            said: completions of the turns played already, by sibling.
        """
        self._said = {sibling: [turn for turn in turns if turn is not None] for sibling, turns in said.items()}
        self._ended = {sibling for sibling, turns in said.items() if turns and turns[-1] is None}
        self._news: list[tuple[int, int, Completion]] = []
        self.advances = 0  # grows with everything that is finished: an opening, a turn, a look

    def turn(self, sibling: int, turn: int) -> Completion | None:
        """What a sibling said at a turn, if that has been played."""
        completions = self._said.get(sibling, ())
        return completions[turn] if turn < len(completions) else None

    def is_over(self, sibling: int, turn: int) -> bool:
        """Whether a sibling's trajectory had ended before this turn: nothing more may be sampled for it."""
        return sibling in self._ended and self.turn(sibling, turn) is None

    def add(self, sibling: int, completion: Completion) -> None:
        """A sibling's next turn."""
        said = self._said.setdefault(sibling, [])
        self._news.append((sibling, len(said), completion))
        said.append(completion)

    def take_news(self) -> list[tuple[int, int, Completion]]:
        """Turns added since the last call of this method, in order: sibling, number of the turn, what was said."""
        news, self._news = self._news, []
        return news


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
    ledger: TokenHistory | None = None,
) -> TrajectoryGroup:
    """Play G siblings of a task at once. The coarse frames are decoded, cut into scenes and stored once for all.

    A video that cannot be read gives G trajectories that ended in VIDEO_ERROR. Everything else that goes wrong raises,
    after the other siblings have been stopped.

    Args:
        sampling: `max_new_tokens` is of a whole trajectory; stop tokens and seed are set here.
        seed: of the run; with step, task, occurrence, sibling and turn it determines the seed of every engine call.
        occurrence: which of the step's groups of this task it is, see `occurrences`.
        ledger: turns in it are not sampled again; new ones are added to it.
    """
    ledger = TokenHistory() if ledger is None else ledger
    try:
        opening = await asyncio.to_thread(
            open_clip,
            task,
            processor=episode_context.processor,
            reader=episode_context.reader,
            rules=episode_context.opening,
            form=episode_context.form,
        )
    except VideoError as error:
        lost = Trajectory((), StopReason.VIDEO_ERROR, note=video_error_note(error))
        return TrajectoryGroup(task, (lost,) * group_size, coarse_frames=None)
    ledger.advances += 1
    envs = [make_env(task, opening, episode_context, sampling.max_new_tokens) for _ in range(group_size)]
    name = f"{step}/{task.task_id}/{uuid.uuid4().hex[:8]}"  # one task may be played twice at a time
    clocked = [_Stopwatch(generate) for _ in envs]
    trajectories_G = await _all_or_none(
        run_episode(
            env,
            generate=clocked[sibling],
            sampling=sampling,
            name=f"{name}/{sibling}",
            sibling=sibling,
            ledger=ledger,
            seed_of_turn=lambda turn, sibling=sibling: derive_seed(seed, step, task.task_id, sibling, turn, occurrence),
        )
        for sibling, env in enumerate(envs)
    )
    seconds = {
        "decode": opening.decode_s + sum(env.seconds["decode"] for env in envs),
        "segment": opening.segment_s + sum(env.seconds["segment"] for env in envs),
        "generate": max(stopwatch.seconds for stopwatch in clocked),  # of the sibling that waited longest
    }
    return TrajectoryGroup(task, tuple(trajectories_G), opening.frames, opening.clip.duration_s, seconds)


async def run_episode(
    env: RetrievalEnv,
    *,
    generate: Generate,
    sampling: Sampling,
    name: str,
    sibling: int,
    ledger: TokenHistory,
    seed_of_turn: Callable[[int], int],
) -> Trajectory:
    """Play one trajectory to its end. What the environment has to decode, it decodes off the event loop."""
    given, turn = env.reset(), 0
    while not isinstance(given, Trajectory):
        if ledger.is_over(sibling, turn):
            return env.break_off()
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
        completion = ledger.turn(sibling, turn)
        if completion is None:
            completion = await generate(request)
            ledger.add(sibling, completion)
        given, turn = await asyncio.to_thread(env.step, completion), turn + 1
        ledger.advances += 1
    return given


def make_env(task: VideoTask, opening: Opening, episode_context: EpisodeContext, max_new_tokens: int) -> RetrievalEnv:
    """A fresh environment for one sibling."""
    return RetrievalEnv(
        task,
        opening,
        processor=episode_context.processor,
        reader=episode_context.reader,
        rules=episode_context.retrieval,
        budget=TokenBudget(max_new_tokens, episode_context.max_model_len),
    )


def derive_seed(run_seed: int, step: int, task_id: str, sibling: int, turn: int, occurrence: int = 0) -> int:
    """The seed of one engine call, in [0, 2^63): a pure function of what the call is, not of when it runs."""
    named = json.dumps([run_seed, step, task_id, sibling, turn, *([occurrence] if occurrence else [])])
    return int.from_bytes(hashlib.sha256(named.encode()).digest()[:8], "big") >> 1


def occurrences(task_ids: Sequence[str], attempt: int) -> list[int]:
    """Which time a step plays a task, per group, so that a task drawn again is not played the very same way again.

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
