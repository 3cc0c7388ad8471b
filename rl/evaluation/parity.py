"""Are engine and learner the same policy? Log-probs of the same tokens from both, compared segment by segment.

Negative controls show that the comparison would notice: the learner is given the wrong clock, shifted pixels or
permuted scenes, and must then disagree by far more than it does.

Legend: T tokens · N patches · K scenes · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn

from rl.evaluation.parity_cases import CONTROLS, ParityCase, PromptScorer, parity_cases
from rl.policy.processor import Processor
from rl.policy.scoring_head import token_logprobs
from rl.trajectory import Segment, TrajectoryGroup

SEGMENT_NAMES = {Segment.CONTEXT: "prompt", Segment.SAMPLING: "sampling", Segment.REASONING: "reasoning"}
CONTROL_FACTOR = 100.0  # how much larger a control's difference must be than the true one, in fp32
CONTROL_FACTOR_BF16 = 10.0  # rounding alone moves improbable prompt tokens by tenths of a nat


@dataclass(frozen=True, slots=True)
class Deviation:
    """|engine - learner| over some tokens, in nats."""

    max: float
    mean: float
    tokens: int


@dataclass(frozen=True, slots=True)
class ParityReport:
    """What `measure_parity` found."""

    segments: Mapping[str, Deviation]  # prompt, sampling, reasoning
    controls: Mapping[str, float]  # largest |difference| on sampled tokens with altered videos

    @property
    def max(self) -> float:
        """Largest difference of any token."""
        return max(deviation.max for deviation in self.segments.values())

    def failures(self, gate_nat: float, control_factor: float = CONTROL_FACTOR) -> list[str]:
        """Why engine and learner may not be used together; empty if they may.

        Args:
            gate_nat: largest difference allowed.
            control_factor: how much larger a control's difference must be than the true one.
        """
        too_far = [
            f"{name}: max {deviation.max:.2e} nat > {gate_nat:.0e}"
            for name, deviation in self.segments.items()
            if not deviation.max <= gate_nat
        ]
        insensitive = [
            f"control {name}: {value:.2e} nat is less than {control_factor:.0f} times the true {self.max:.2e}"
            for name, value in self.controls.items()
            if not value >= control_factor * self.max
        ]
        return too_far + insensitive

    def as_dict(self) -> dict[str, object]:
        """For JSON: each segment's max, mean and tokens, then the controls."""
        return {**{name: asdict(deviation) for name, deviation in self.segments.items()}, "controls": {**self.controls}}


def measure_parity(
    engine: PromptScorer,
    model: nn.Module,
    processor: Processor,
    groups: Iterable[TrajectoryGroup],
    *,
    temperature: float,
) -> ParityReport:
    """Compare engine and learner on trajectories the engine has just made.

    Args:
        model: the learner's policy with the weights the engine had.
        temperature: the trajectories were sampled at.
    Raises:
        ValueError: nothing to compare, or no video with two scenes to make the controls from.
    """
    cases = [case for group in groups for case in parity_cases(engine, group)]
    if not any(len(video.scene_lengths) > 1 for case in cases for video in case.videos):
        raise ValueError("parity needs trajectories with a video of at least two scenes")
    learner = [learner_logprobs(model, processor, case, temperature) for case in cases]
    controls = {}
    for name, alter in CONTROLS.items():
        altered = [alter(processor, case) for case in cases]
        wrong = [learner_logprobs(model, processor, case, temperature) for case in altered]
        controls[name] = _sampled_max(compare(altered, wrong))
    return ParityReport(compare(cases, learner), controls)


def compare(cases: Sequence[ParityCase], learner: Sequence[np.ndarray]) -> dict[str, Deviation]:
    """|engine - learner| per segment, over the tokens both have scored.

    Args:
        learner: per case, log-probs of its tokens (T), NaN where there is none to compare.
    """
    pooled: dict[str, list[np.ndarray]] = {name: [] for name in SEGMENT_NAMES.values()}
    for case, learner_T in zip(cases, learner, strict=True):
        difference_T = np.abs(np.asarray(case.engine_logprobs) - learner_T)
        segment_T = np.asarray(case.segment_ids)
        for segment, name in SEGMENT_NAMES.items():
            pooled[name].append(difference_T[(segment_T == segment) & ~np.isnan(difference_T)])
    return {name: _deviation(np.concatenate(parts)) for name, parts in pooled.items() if sum(map(len, parts))}


@torch.no_grad()
def learner_logprobs(model: nn.Module, processor: Processor, case: ParityCase, temperature: float) -> np.ndarray:
    """The learner's log-probs of a case's tokens (T), NaN on the first and on those the policy may not write.

    Sampled tokens are scored at `temperature`, context at 1, as the engine does.
    """
    device = next(model.parameters()).device
    allowed_V = torch.from_numpy(processor.allowed_token_mask()).to(device)
    ids_1T = torch.tensor([case.token_ids], device=device)
    positions_31T = torch.from_numpy(processor.positions(case.token_ids, case.videos))[:, None]
    is_context_T = np.asarray(case.segment_ids) == Segment.CONTEXT
    logprobs_T = np.full(len(case.token_ids), np.nan)
    for is_part_T, part_temperature in ((is_context_T, 1.0), (~is_context_T, temperature)):
        scored_T = is_part_T & allowed_V[ids_1T[0]].cpu().numpy()
        scored_T[0] = False
        found_1T, _ = token_logprobs(
            model,
            ids_1T,
            None,
            positions_31T.to(device),
            [processor.pack(video) for video in case.videos],
            allowed_V=allowed_V,
            temperature=part_temperature,
            scored_BT=torch.from_numpy(scored_T)[None].to(device),
        )
        logprobs_T[scored_T] = found_1T[0].float().cpu().numpy()[scored_T]
    return logprobs_T


def _deviation(differences: np.ndarray) -> Deviation:
    return Deviation(float(differences.max()), float(differences.mean()), len(differences))


def _sampled_max(segments: Mapping[str, Deviation]) -> float:
    return max(deviation.max for name, deviation in segments.items() if name != SEGMENT_NAMES[Segment.CONTEXT])
