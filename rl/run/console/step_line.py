"""The line of a training step: rewards, accuracy, granted calls, speed, and when the run will be done."""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import fmean

from rl.run.console.stages import Clock, spell_seconds

NOTABLE = 0.1  # share of calls that are malformed, or refused, from which the line says so
PACE_STEPS = 20  # the last ones, from which the time left is estimated


class Pace:
    """Wall-clock seconds per step, evaluations and saves between steps included."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self._ends_s: deque[float] = deque(maxlen=PACE_STEPS + 1)

    def step_done(self, seconds: float) -> float:
        """Seconds per step, over the last PACE_STEPS.

        Args:
            seconds: of the step that is done; what went before the first one does not count.
        """
        if not self._ends_s:
            self._ends_s.append(self._clock() - seconds)
        self._ends_s.append(self._clock())
        return (self._ends_s[-1] - self._ends_s[0]) / (len(self._ends_s) - 1)


def step_line(step: int, steps: int, numbers: Mapping[str, float], *, answer_terms: Sequence[str], eta_s: float) -> str:
    """One line for people.

    step 42/100  reward: retrieval .81 answer .90  accuracy .88  granted calls 1.00  1.2 s  5,312 tok/s  ETA 1m10s

    The reward of the sampling segment is shown as retrieval, that of the reasoning segment as answer. Malformed and
    refused calls stand in it where they are more than a few.

    Args:
        step: the one that is done, from 1.
        numbers: the step's metrics.
        answer_terms: reward terms that score the answer itself; their mean is the accuracy.
        eta_s: seconds until the last step; after it the line says nothing of it.
    """
    scored = [numbers[f"reward/term/{name}"] for name in answer_terms if f"reward/term/{name}" in numbers]
    masked = numbers["reward/failed"]
    parts = [
        f"step {step}/{steps}",
        f"reward: retrieval {share(numbers['reward/sampling'])} answer {share(numbers['reward/reasoning'])}",
        f"accuracy {share(fmean(scored))}" if scored else "",
        f"granted calls {share(numbers['rollout/granted_calls'])}",
        *(
            f"{kind} calls {share(numbers[f'rollout/{kind}_calls'])}"
            for kind in ("malformed", "refused")
            if numbers[f"rollout/{kind}_calls"] >= NOTABLE
        ),
        f"masked {masked:.0f} of {numbers['rollout/trajectories']:.0f}" if masked else "",
        spell_seconds(numbers["seconds/step"]),
        f"{numbers['rollout/tokens_per_s']:,.0f} tok/s",
        f"ETA {spell_seconds(eta_s)}" if step < steps else "",
    ]
    return "  ".join(part for part in parts if part)


def supervised_line(step: int, steps: int, numbers: Mapping[str, float], *, eta_s: float) -> str:
    """One line for people on a supervised step.

    step 42/2188  loss 1.234 nat  3.2 s  12,345 tok/s  ETA 1h55m
    """
    skipped = numbers["data/skipped"]
    parts = [
        f"step {step}/{steps}",
        f"loss {numbers['loss/nll']:.3f} nat",
        f"skipped {skipped:.0f}" if skipped else "",
        spell_seconds(numbers["seconds/step"]),
        f"{numbers['update/tokens'] / max(numbers['seconds/step'], 1e-9):,.0f} tok/s",
        f"ETA {spell_seconds(eta_s)}" if step < steps else "",
    ]
    return "  ".join(part for part in parts if part)


def held_out_loss_line(step: int, numbers: Mapping[str, float]) -> str:
    """One line for people on held-out conversations: the loss of all, and of each source where there are several."""
    prefix = "held_out/nll/"
    sources = {name.removeprefix(prefix): value for name, value in numbers.items() if name.startswith(prefix)}
    each = "  ".join(f"{name} {value:.3f}" for name, value in sources.items()) if len(sources) > 1 else ""
    failed = f"  unusable {numbers['held_out/failed']:.0f}" if numbers["held_out/failed"] else ""
    return f"held-out loss after step {step}  {numbers['held_out/nll']:.3f} nat{f'  ({each})' if each else ''}{failed}"


def evaluation_line(step: int, numbers: Mapping[str, float]) -> str:
    """One line for people on held-out tasks, as `step_line`."""
    return (
        f"held-out tasks after step {step}  reward: retrieval {share(numbers['held_out/reward_sampling'])} answer "
        f"{share(numbers['held_out/reward_reasoning'])}  accuracy {share(numbers['held_out/accuracy'])}  granted calls "
        f"{share(numbers['held_out/granted_calls'])}  frames {numbers['held_out/frames']:.1f}"
    )


def share(value: float) -> str:
    """Two digits, without the zero before the point: ".81", "1.00"; "-" where there is nothing to average."""
    return "-" if math.isnan(value) else re.sub(r"^(-?)0\.", r"\1.", f"{value:.2f}")
