"""What a run achieved, read off metrics.jsonl: a resumed run has the same summary as one that never stopped.

Only the faults are its own: they are read off faults.jsonl, which also has those of steps that were repeated.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rl.tracking.faults import fault_counts
from rl.tracking.metrics import current_names


def summarise(run_dir: Path) -> dict[str, Any]:
    """Steps, seconds, first and last rewards per segment, held-out before and after, faults by kind.

    `first` and `last` are means over the first and last tenth of the steps: one step's rewards are noisy.
    """
    text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [current_names(json.loads(line)) for line in text.splitlines()]
    steps = [line for line in lines if "seconds/step" in line]
    evaluations = [line for line in lines if "held_out/tasks" in line]
    after = evaluations[-1:] if evaluations and evaluations[-1]["step"] > evaluations[0]["step"] else []
    return {
        "steps": steps[-1]["step"] if steps else 0,
        "seconds": round(sum(line["seconds/step"] for line in steps), 1),
        "rewards": {
            segment: {
                "first": _mean(steps[: _tenth(steps)], f"reward/{segment}"),
                "last": _mean(steps[-_tenth(steps) :], f"reward/{segment}"),
            }
            for segment in ("sampling", "reasoning")
        },
        "held_out": {
            when: {"step": line["step"]} | {k.removeprefix("held_out/"): v for k, v in line.items() if "held_out/" in k}
            for when, line in zip(("before", "after"), evaluations[:1] + after, strict=False)
        },
        **_supervision(steps),
        "policy_version": int(steps[-1].get("policy/version", 0)) if steps else 0,
        "skipped_updates": sum(line.get("update/skipped_steps", 0.0) for line in steps),
        "masked": {
            "reward_failures": sum(
                line.get("reward/failed", 0.0) - line.get("reward/failed/video_error", 0.0) for line in steps
            ),
            "video_errors": sum(line.get("rollout/video_errors", 0.0) for line in steps),
        },
        "faults": fault_counts(run_dir),
    }


def _supervision(steps: list[dict]) -> dict[str, Any]:
    """Of a fine-tuning run: its loss, and how many examples others stood in for."""
    if not any("loss/nll" in line for line in steps):
        return {}
    parts = {"first": steps[: _tenth(steps)], "last": steps[-_tenth(steps) :]}
    return {
        "loss": {when: _mean(lines, "loss/nll") for when, lines in parts.items()},
        "skipped_examples": sum(line.get("data/skipped", 0.0) for line in steps),
    }


def is_evaluated(run_dir: Path, step: int) -> bool:
    """Whether the evaluation after so many steps is in the log."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else ()
    return any(f'"step": {step},' in line and '"held_out/tasks"' in line for line in lines)


def _tenth(steps: list[dict]) -> int:
    return max(1, len(steps) // 10)


def _mean(lines: list[dict], name: str) -> float | None:
    values = [line[name] for line in lines if name in line]
    return round(sum(values) / len(values), 4) if values else None
