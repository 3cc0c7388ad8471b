"""A run's folder as a training writes it, in a second: real clips, the project's own records and metrics."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from envs.synthetic.world import QuickstartWorld, render_world, world_rows
from rl.algorithm.batch import credit_metrics, learned_credit
from rl.tracking.lanes import LANES, write_lanes
from rl.tracking.records import records, write_step
from rl.tracking.step_metrics import reward_metrics, rollout_metrics
from rl.trajectory import (
    AnswerKind,
    Completion,
    Frames,
    MalformedCall,
    RetrievalCall,
    ScoredGroup,
    Segment,
    SegmentRewards,
    StopReason,
    TimeSpan,
    Trajectory,
    TrajectoryGroup,
    Turn,
    VideoTask,
    WorkSpan,
)
from tests.remote_groups import remote_scored

WORLD = QuickstartWorld(train_clips=4, held_out_clips=2)
CONFIG = """\
name: recorded
trainer: {steps: 4, eval_tasks: 2}
rollout: {group_size: 4, tasks_per_step: 3}
algorithm: {advantage: {method: sd_grpo}}
rewards:
  window: {fn: temporal_iou, segment: sampling, weight: 0.5}
  frame_rate: {fn: frame_rate, segment: sampling, weight: 0.5}
  answer: {fn: answer, segment: reasoning, weight: 0.9}
  format: {fn: output_format, segment: reasoning, weight: 0.1}
"""


def write_run(folder: Path, clips: Path, *, steps: int = 4, siblings: int = 4, written: str = "I see yellow.") -> Path:
    """Write a run of `steps` steps with three groups each; the last group of a step has zero variance; in every group
    one sibling does not look, one asks for more than there is (clamped) and, from four on, one asks nonsense.

    Args:
        written: what every policy writes before its answer.
    """
    world = render_world(WORLD, clips)
    tasks = [_task(row, index, world.folder) for index, row in enumerate(world_rows(WORLD, "train"))]
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "metrics.jsonl").touch()
    _append(folder, 0, _held_out(0.5))
    for step in range(1, steps + 1):
        rng = np.random.default_rng(step)
        vocabulary = _Vocabulary()
        scored = [
            _group(tasks[(step + g) % len(tasks)], siblings, written, vocabulary, rng, zero_variance=g == 2)
            for g in range(3)
        ]
        learner = [[_as_learner(trajectory, rng) for trajectory in group.group.trajectories_G] for group in scored]
        credit_PG = [learned_credit(group) for group in scored]
        rows = records(scored, vocabulary.pieces, credit_PG=credit_PG, logprobs_PG=learner)
        write_step(folder / "trajectories", step, rows)
        append_step(folder, step, _metrics(scored, step))
    _append(folder, steps, _held_out(0.9))
    alone = [_group(tasks[0], 1, written, vocabulary, np.random.default_rng(0), zero_variance=False)]
    write_step(folder / "held_out", steps, records(alone, vocabulary.pieces))
    evaluation = folder / "eval" / "charades_sta"
    evaluation.mkdir(parents=True)
    estimate = {"value": 0.41, "low": 0.38, "high": 0.44, "n": 3720}
    metrics = {"mIoU": estimate, "R1@0.5": estimate}
    published = {
        "mIoU": {"comparable": True, "why_not": None, "printed": None},
        "R1@0.5": {"comparable": False, "why_not": "no script prints it", "printed": "41.02"},
    }
    report = {"benchmark": "charades_sta", "metrics": metrics, "published": published, "counts": {}}
    (evaluation / "metrics.json").write_text(json.dumps(report))
    return folder


def write_failures(folder: Path, *changes: dict) -> None:
    """failures.jsonl with a line per cause: a reward that raised, with some of its keys changed."""
    failure = {
        "key": "reward brevity",
        "kind": "reward",
        "cause": "reward 'brevity' raised KeyError: 'gold' on task train:1 at my_rewards.py:4",
        "count": 8,
        "first_step": 1,
        "last_step": 2,
        "task": {"id": "train:1"},
        "group": 0,
        "sibling": 1,
        "traceback": "Traceback (most recent call last):\n  my_rewards.py, line 4\nKeyError: 'gold'\n",
        "trajectory": {"text": "<answer>B</answer>"},
    }
    (folder / "failures.jsonl").write_text("".join(json.dumps(failure | change) + "\n" for change in changes))


def append_step(folder: Path, step: int, metrics: dict[str, float]) -> None:
    """One more training step in metrics.jsonl, and who worked when in lanes.jsonl."""
    seconds = {"seconds/rollout": 0.8, "seconds/reward": 0.1, "seconds/update": 0.7, "seconds/sync": 0.05}
    numbers = {"policy/entropy": 0.3 / step, "parity/mean/sampling": 3e-7, "memory/driver": 400.0 + step}
    idle = {"idle/engines": 0.5, "idle/learners": 0.58, "update/tokens_per_s": 5000.0 + step}
    _append(folder, step, metrics | seconds | numbers | idle | {"seconds/step": 1.65, "policy/version": step})
    write_lanes(folder / LANES, step, _worked(1.7e9 + 1.7 * step), 1.7e9 + 1.7 * step, 1.7e9 + 1.7 * (step + 1))


def _worked(start_s: float) -> list[WorkSpan]:
    """Of one step: two engines with a pause, scores beside them, two ranks, a push; a checkpoint is still written."""
    made = [
        *(("rollout/0", "rollout", 0.0, 0.5), ("rollout/0", "rollout", 0.55, 0.78), ("rollout/1", "rollout", 0.0, 0.7)),
        *(("reward/0", "reward", 0.5, 0.6), ("reward/0", "reward", 0.78, 0.85)),
        *(("learner/0", "update", 0.88, 1.55), ("learner/1", "update", 0.88, 1.5), ("push", "push", 1.58, 1.65)),
        *(("save", "save", 0.0, 0.04), ("checkpoint", "write", 0.04, 2.1)),
    ]
    return [WorkSpan(worker, work, start_s + first, start_s + last) for worker, work, first, last in made]


def _append(folder: Path, step: int, metrics: dict[str, float]) -> None:
    known = {name: value for name, value in metrics.items() if value == value}  # NaN: nothing to average
    with (folder / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"step": step, "time_s": 1.7e9 + step} | known) + "\n")


def _metrics(scored: list[ScoredGroup], step: int) -> dict[str, float]:
    held = remote_scored(scored)
    rolled = rollout_metrics([one.group for one in held], pixels_per_token=28**2)
    return rolled | reward_metrics(held) | credit_metrics(held)


def _held_out(level: float) -> dict[str, float]:
    names = ("reward_sampling", "reward_reasoning", "accuracy", "granted_calls")
    return {f"held_out/{name}": level for name in names} | {"held_out/frames": 10 * level, "held_out/tasks": 2.0}


def _task(row: dict, index: int, folder: Path) -> VideoTask:
    return VideoTask(
        task_id=f"train:{index}",
        video_path=str(folder / row["video"]),
        question=row["prompt"],
        answer=row["answer"],
        answer_kind=AnswerKind.LETTER,
        evidence_span=TimeSpan(row["gt_span_start"], row["gt_span_end"]),
        evidence_fps=float(row["fps"]),
    )


def _group(task, siblings, written, vocabulary, rng, *, zero_variance) -> ScoredGroup:
    coarse_frames = _frames([float(second) for second in range(8)])
    trajectories, rewards = [], []
    for i in range(siblings):
        start_s = round(float(rng.uniform(0, 5)), 2)
        kind = ("look", "clamped", "none", "malformed")[i % 4] if siblings > 1 else "look"
        trajectories.append(_trajectory(kind, start_s, written, vocabulary, rng))
        window = 0.0 if kind in ("none", "malformed") else round(float(rng.uniform(0.2, 1)), 3)
        answered = float(rng.integers(2))
        equal = SegmentRewards(0.5, 1.0, {"window": 0.5, "frame_rate": 0.5, "answer": 1.0, "format": 1.0})
        terms = {"window": window, "frame_rate": window, "answer": answered, "format": 1.0}
        rewards.append(equal if zero_variance else SegmentRewards(window, 0.9 * answered + 0.1, terms))
    return ScoredGroup(TrajectoryGroup(task, tuple(trajectories), coarse_frames, duration_s=8.0), tuple(rewards))


def _trajectory(kind: str, start_s: float, written: str, vocabulary: _Vocabulary, rng) -> Trajectory:
    answer = ["<think>", written, "</think>", "<answer>", "ABCD"[int(rng.integers(4))], "</answer>", "<|im_end|>"]
    if kind == "none":
        last = Turn((1, 2), _say(vocabulary, answer, rng), Segment.REASONING)
        return Trajectory((last,), StopReason.ANSWERED, "".join(answer[:-1]))
    end_s = 9.5 if kind == "clamped" else start_s + 2
    window = ["<span>", f"{start_s:.2f}", " - ", f"{end_s:.2f}", "</span>"]
    ask = ["<think>", "Look closer.", *window, "<fps>", "6", "</fps>"]
    call, frames = MalformedCall("no window in it"), None
    if kind != "malformed":
        end, limits = min(end_s, 8.0), ("end", "frames") if kind == "clamped" else ()
        count = min(16, int((end - start_s) * 6))
        times = [np.floor((start_s + i * (end - start_s) / count) * 12) / 12 for i in range(count)]
        asked, granted = TimeSpan(start_s, end_s), TimeSpan(start_s, end)
        call = RetrievalCall(asked, 6.0, granted, count / granted.length_s, count, limits)
        frames = _frames(times)
    turns = (
        Turn((1, 2), _say(vocabulary, ask, rng), Segment.SAMPLING, call),
        Turn((3, 4, 5), _say(vocabulary, answer[1:], rng), Segment.REASONING, None, frames),
    )
    return Trajectory(turns, StopReason.ANSWERED, "".join(ask) + "<video>" + "".join(answer[1:-1]))


def _frames(times_s: list[float]) -> Frames:
    scenes, left = [], len(times_s)
    while left:
        scenes.append(min(3, left))
        left -= scenes[-1]
    pixels_THWC = np.zeros((len(times_s), 56, 56, 3), np.uint8)
    return Frames(pixels_THWC, tuple(map(float, times_s)), tuple(scenes), 56, 56, digest=str(times_s))


def _say(vocabulary: _Vocabulary, pieces: list[str], rng) -> Completion:
    logprobs = tuple(-float(value) for value in rng.exponential(0.3, size=len(pieces)))
    return Completion(vocabulary.ids(pieces), logprobs, "stop", policy_version=1)


def _as_learner(trajectory: Trajectory, rng) -> np.ndarray:
    engine = [value for turn in trajectory.turns for value in turn.completion.logprobs]
    return np.array(engine) + rng.normal(0, 1e-4, size=len(engine))


class _Vocabulary:
    """Numbers for whatever is written."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def ids(self, pieces: list[str]) -> tuple[int, ...]:
        self._texts += pieces
        return tuple(range(len(self._texts) - len(pieces), len(self._texts)))

    def pieces(self, token_ids) -> list[str]:
        return [self._texts[token] for token in token_ids]
