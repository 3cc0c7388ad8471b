"""What a worker is called where Ray shows it: the run, the worker, and the step it works on.

| shown in | is | follows the step |
|---|---|---|
| dashboard and `ray list actors`: name | NAME/rollout/0 | no, names are for life |
| dashboard and `ray list actors`: repr; prefix of forwarded log lines | NAME/rollout/0 | no, Ray asks once |
| errors that a worker raises | NAME/rollout/0, step 7 | yes |
| dashboard and `ray list tasks`: calls; process title in ps and top while one runs | NAME/rollout/0, step 7 | yes |
"""

from __future__ import annotations

import ray


class WorkerLabel:
    """The label of the worker process that holds it."""

    def __init__(self) -> None:
        self._step: int | None = None

    def at(self, step: int) -> None:
        """Set the step that the worker works on, counted from 0; negative: an evaluation."""
        self._step = step

    def __str__(self) -> str:
        name = ray.get_runtime_context().get_actor_name() if ray.is_initialized() else ""
        return label(name or "worker", self._step)


def label(name: str, step: int | None) -> str:
    """A worker's name and its step, counted from 1 as in metrics.jsonl; None: it has had none yet."""
    if step is None:
        return name
    return f"{name}, evaluation" if step < 0 else f"{name}, step {step + 1}"
