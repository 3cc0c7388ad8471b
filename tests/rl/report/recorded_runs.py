"""A folder of runs as trainings and evaluations leave it: seeds of one name, a phase that goes on, one that broke."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from rl.evaluation.predictions import EXAMPLES, METRICS, Outcome, open_folder, write_json
from rl.run.origin import ANCESTRY, Ancestor


def write_curves(run: Path, *, seed: int = 0, steps: int = 40, planned: int = 40, level: float = 0.9) -> Path:
    """A run with metrics and a configuration, and no trajectories."""
    run.mkdir(parents=True, exist_ok=True)
    method = "{method: sd_grpo}"
    (run / "config.yaml").write_text(
        f"name: {run.name}\nseed: {seed}\ntrainer: {{steps: {planned}}}\nalgorithm: {{advantage: {method}}}\n"
    )
    rng = np.random.default_rng(seed)
    lines = []
    for step in range(1, steps + 1):
        grown = level * (1 - np.exp(-step / 12)) + float(rng.normal(0, 0.03))
        line = {"step": step, "time_s": 1.7e9 + 30 * step, "reward/sampling": grown, "reward/reasoning": grown / 2}
        line |= {"policy/entropy": 1 / step, "grad/norm": 1 + float(rng.exponential(0.2)), "seconds/step": 28.0}
        lines.append(line)
        if step % 10 == 0:
            lines.append({"step": step, "time_s": 1.7e9 + 30 * step, "held_out/accuracy": grown, "held_out/tasks": 8.0})
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return run


def write_evaluation(
    run: Path,
    name: str,
    videos: list[str],
    *,
    questions: int = 12,
    right: float = 0.5,
    seed: int = 0,
    is_done: bool = True,
    said: str = "I looked, and it was red.",
) -> Path:
    """eval/NAME of a run: every question of three types, the windows it looked at, right with probability `right`."""
    folder = run / "eval" / name
    rng = np.random.default_rng(seed)
    examples = []
    with open_folder(folder, {"benchmark": name, "policy": f"{seed:016x}"}) as file:
        for index in range(questions):
            evidence = [1.0 + index % 4, 3.0 + index % 4]
            examples.append(_example(index, evidence, videos[index % len(videos)]))
            if index % 5 != 4 or is_done:
                file.append(_outcome(index, evidence, rng, right, said))
    write_json(folder / EXAMPLES, {"benchmark": "nextgqa", "headline": "acc_qa", "examples": examples})
    if is_done:
        metrics = {"acc_qa": {"value": right, "low": right - 0.1, "high": right + 0.1, "n": questions}}
        write_json(folder / METRICS, {"benchmark": "nextgqa", "headline": "acc_qa", "metrics": metrics})
    return folder


def begin_from(run: Path, other: Path, step: int) -> None:
    """The run says that it began with the weights of another."""
    source = str(other.absolute() / "checkpoints" / f"step_{step:06d}")
    (run / ANCESTRY).write_text(json.dumps([asdict(Ancestor(source, other.name, step, "0123456789ab"))]))


def _example(index: int, evidence: list[float], video: str) -> dict:
    return {
        "task_id": f"clip{index}_0",
        "question": f"What did the person do after event {index}?",
        "answer": "ABCD"[index % 4],
        "options": ["sat down", "left", "waved", "spoke"],
        "windows_s": [evidence],
        "video": video,
    }


def _outcome(index: int, evidence: list[float], rng: np.random.Generator, right: float, said: str) -> Outcome:
    is_right, kind = float(rng.random() < right), ("look", "none", "malformed", "look")[index % 4]
    start_s = float(np.clip(evidence[0] + rng.normal(0, 0.8), 0, 5))
    calls: tuple = ()
    if kind == "look":
        asked = [round(start_s, 2), round(start_s + 2, 2)]
        calls = ({"asked_s": asked, "asked_fps": 4.0, "granted_s": asked, "granted_fps": 4.0, "frames": 8},)
    elif kind == "malformed":
        calls = ({"malformed": "no window in it"},)
    answer = "ABCD"[index % 4 if is_right else (index + 1) % 4]
    missing = "clip11.mp4: cannot be opened" if index == 11 else None
    return Outcome(
        task_id=f"clip{index}_0",
        index=index,
        group=("CW", "TN", "TC")[index % 3],
        metrics={"acc_qa": 0.0 if missing else is_right, "miou": 0.5 * is_right},
        answer=None if missing else answer,
        windows_s=tuple(tuple(call["granted_s"]) for call in calls if "granted_s" in call),
        text=f"<think>{said}</think><answer>{answer}</answer>",
        stop="answered",
        calls=calls,
        missing=missing,
        duration_s=8.0,
    )
