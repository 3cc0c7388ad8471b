"""Workers that play a script, for benchmarks/driver.py: the classes of real workers around an engine and a learner that
compute nothing, so that what is left is the driver's own work.

Legend: G siblings of a group · S sampled tokens of a trajectory.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from actors.learner import LearnerWorker
from actors.worker.working_time import WorkingTime
from envs.rollout import TokenHistory
from rl.trajectory import (
    AnswerKind,
    Completion,
    Frames,
    LearnerUpdate,
    RetrievalCall,
    ScoredGroup,
    Segment,
    StopReason,
    TimeSpan,
    Trajectory,
    TrajectoryGroup,
    Turn,
    VideoTask,
)

VOCABULARY = 700  # of the tokenizer that records are written with
SIDE = 28  # pixels of a frame, which the driver never sees


@dataclass(frozen=True, slots=True)
class Script:
    """What every group looks like."""

    siblings: int  # G
    opening_tokens: int
    look_tokens: int  # inserted after a sibling's call
    call_tokens: int  # sampled
    answer_tokens: int  # sampled, on average
    seconds: float  # that a group takes, on average, asleep; in proportion to its longest answer

    def draw_answer_tokens(self, draw: random.Random) -> int:
        """Lognormal with a mean of `answer_tokens` and a median of .73 times that."""
        return max(2, int(draw.lognormvariate(-0.32, 0.8) * self.answer_tokens))


def script_task(number: int) -> VideoTask:
    """A row of a data set of usual size."""
    options = "A. sits down. B. leaves. C. waves. D. reads."
    question = f"<video>\nWhat does the person in the red coat do after the door has opened? {options}"
    clip = f"/data/clips/train/part-{number % 100:03d}/clip_{number:08d}.mp4"
    extra = {"source": "activities", "subset": "train", "difficulty": "medium", "index": number}
    evidence = TimeSpan(3.0, 6.5)
    return VideoTask(f"train.jsonl:{number}", clip, question, "B", AnswerKind.LETTER, evidence, 4.0, extra=extra)


class ScriptedEngine:
    """What a rollout worker asks of its engine beside tokens."""

    def progress(self) -> int:
        return 0

    def failure(self) -> str:
        return ""

    def stats(self) -> dict[str, float]:
        return {"prompt_tokens": 1.0}

    def device_memory_mib(self) -> float:
        return 0.0


class ScriptedRunner:
    """Rolls out groups of the script's lengths; a task's group is always the same."""

    def __init__(self, script: Script) -> None:
        self._script, self.engine, self.working = script, ScriptedEngine(), WorkingTime()

    async def roll_out(
        self, task: VideoTask, *, step: int, greedily: bool, occurrence: int, history: TokenHistory
    ) -> TrajectoryGroup:
        script, draw = self._script, random.Random(f"{task.task_id}/{step}/{occurrence}")
        answers_G = [script.draw_answer_tokens(draw) for _ in range(script.siblings)]
        opening = tuple(draw.choices(range(VOCABULARY), k=script.opening_tokens))
        coarse = _block(f"{task.task_id}/coarse", frames=8)
        await asyncio.sleep(script.seconds / 2)
        calls_G = [self._complete(draw, script.call_tokens, sibling, history) for sibling in range(script.siblings)]
        await asyncio.sleep(script.seconds / 2 * max(answers_G) / script.answer_tokens)
        siblings = []
        for sibling, (call, answer_tokens) in enumerate(zip(calls_G, answers_G, strict=True)):
            granted = RetrievalCall(TimeSpan(2.0, 6.0 + sibling), 4.0, TimeSpan(2.0, 6.0 + sibling), 4.0, 16)
            look = tuple(draw.choices(range(VOCABULARY), k=script.look_tokens))
            answer = self._complete(draw, answer_tokens, sibling, history)
            turns = (
                Turn(opening, call, Segment.SAMPLING, granted),
                Turn(look, answer, Segment.REASONING, None, _block(f"{task.task_id}/{sibling}", frames=16)),
            )
            siblings.append(Trajectory(turns, StopReason.ANSWERED, f"<answer>{draw.choice('AB')}</answer>"))
        seconds = {"decode": 0.1, "segment": 0.01, "generate": script.seconds}
        return TrajectoryGroup(task, tuple(siblings), coarse, 30.0, seconds)

    def progress(self) -> int:
        return 0

    def take_faults(self) -> list:
        return []

    @staticmethod
    def _complete(draw: random.Random, tokens: int, sibling: int, history: TokenHistory) -> Completion:
        ids = tuple(draw.choices(range(VOCABULARY), k=tokens))
        logprobs = tuple(float(np.float32(-draw.random())) for _ in range(tokens))
        completion = Completion(ids, logprobs, "stop", 0)
        history.add(sibling, completion)
        return completion


class ScriptedRank(LearnerWorker):
    """A rank that fetches its groups as a real one does, one at a time, and keeps none of them."""

    def receive(self, held: Sequence, rewards: Sequence) -> list[int]:
        lost, learned = [], []
        for index, (one, rewards_G) in enumerate(zip(held, rewards, strict=True)):
            lost += [index for _ in super().receive([one], [rewards_G])]
            learned += [_lengths(group) for group in self._received]
        self._received = learned
        return lost


class ScriptedLearner:
    """Learns nothing; says the log-prob of every sampled token."""

    def learn(self, scored: Sequence[list[int]], version: int, step: int) -> LearnerUpdate:
        logprobs_PG = tuple(tuple(np.full(sampled, -0.5, np.float32) for sampled in sampled_G) for sampled_G in scored)
        return LearnerUpdate({"loss/surrogate": 0.0, "parity/mean/reasoning": 0.0}, logprobs_PG, 1, "scripted")


def scripted_learner(**_place: object) -> ScriptedLearner:
    return ScriptedLearner()


def _lengths(scored: ScoredGroup) -> list[int]:
    return [sum(len(turn.completion.token_ids) for turn in t.turns) for t in scored.group.trajectories_G]


def _block(name: str, frames: int) -> Frames:
    pixels = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    times_s = tuple(index / 4 for index in range(frames))
    return replace(Frames(pixels, times_s, (2,) * (frames // 2), SIDE, SIDE, ""), digest=f"{name:>064}"[-64:])
