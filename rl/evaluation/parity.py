"""Are engine and learner the same policy? Log-probs of the same tokens from both, compared segment by segment.

Two things show that the comparison would notice a difference. Negative controls: the learner is given the wrong clock,
shifted pixels or permuted scenes, and must then disagree by far more than it does. And the spread of the log-probs
compared: a nearly uniform policy gives every token the same, whatever it is shown.

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
CONTROL_FACTOR_BF16 = 5.0  # rounding alone moves improbable prompt tokens by tenths of a nat, more on some processors
LEAST_SPREAD = 1.0  # nat; random weights of a tiny policy spread by .2


@dataclass(frozen=True, slots=True)
class Deviation:
    """|engine - learner| over some tokens, in nats."""

    max: float
    mean: float
    tokens: int
    spread: float  # standard deviation of the engine's log-probs of these tokens, nat


@dataclass(frozen=True, slots=True)
class ParityGates:
    """The limits of a precision, in nats."""

    max_nat: float  # largest difference of any token
    mean_nat: float  # largest mean of a segment
    control_factor: float = CONTROL_FACTOR  # how much larger a control's difference must be than the true one


@dataclass(frozen=True, slots=True)
class ParityReport:
    """What `measure_parity` found."""

    segments: Mapping[str, Deviation]  # prompt, sampling, reasoning
    controls: Mapping[str, float]  # largest |difference| on sampled tokens with altered videos
    spread: float  # standard deviation of all log-probs compared, nat

    @property
    def max(self) -> float:
        """Largest difference of any token."""
        return max(deviation.max for deviation in self.segments.values())

    def failures(self, gates: ParityGates) -> list[str]:
        """Why engine and learner may not be used together; empty if they may."""
        too_far = [
            f"{name}: {measure} {value:.2e} nat > {gate:.0e}"
            for name, deviation in self.segments.items()
            for measure, value, gate in (
                ("max", deviation.max, gates.max_nat),
                ("mean", deviation.mean, gates.mean_nat),
            )
            if not value <= gate
        ]
        insensitive = [
            f"control {name}: {value:.2e} nat is less than {gates.control_factor:.0f} times the true {self.max:.2e}"
            for name, value in self.controls.items()
            if not value >= gates.control_factor * self.max
        ]
        return too_far + insensitive

    def warnings(self) -> list[str]:
        """What makes the comparison worth little though nothing is wrong; empty if nothing does."""
        if self.spread >= LEAST_SPREAD:
            return []
        return [
            f"log-probs spread by {self.spread:.2f} nat only: a nearly uniform policy proves little; compare a trained "
            "one, or after the cold start (cold_start.enabled=true)"
        ]

    def as_dict(self) -> dict[str, object]:
        """For JSON: each segment's max, mean, tokens and spread; the controls; the spread of all; the warnings."""
        segments = {name: asdict(deviation) for name, deviation in self.segments.items()}
        return {**segments, "controls": {**self.controls}, "spread": self.spread, "warnings": self.warnings()}


def measure_parity(
    engine: PromptScorer,
    model: nn.Module,
    processor: Processor,
    groups: Iterable[TrajectoryGroup],
    *,
    temperature: float,
) -> ParityReport:
    """Compare engine and learner on trajectories of the engine's.

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
    compared = np.concatenate(
        [np.asarray(c.engine_logprobs)[~np.isnan(of)] for c, of in zip(cases, learner, strict=True)]
    )
    controls = {}
    for name, alter in CONTROLS.items():
        altered = [alter(processor, case) for case in cases]
        wrong = [learner_logprobs(model, processor, case, temperature) for case in altered]
        controls[name] = _sampled_max(compare(altered, wrong))
    return ParityReport(compare(cases, learner), controls, float(compared.std()))


def compare(cases: Sequence[ParityCase], learner: Sequence[np.ndarray]) -> dict[str, Deviation]:
    """|engine - learner| per segment, over the tokens both have scored.

    Args:
        learner: per case, log-probs of its tokens (T), NaN where there is none to compare.
    """
    pooled: dict[str, list[np.ndarray]] = {name: [] for name in SEGMENT_NAMES.values()}
    for case, learner_T in zip(cases, learner, strict=True):
        both_2T, segment_T = np.stack([np.asarray(case.engine_logprobs), learner_T]), np.asarray(case.segment_ids)
        for segment, name in SEGMENT_NAMES.items():
            pooled[name].append(both_2T[:, (segment_T == segment) & ~np.isnan(both_2T).any(axis=0)])
    joined = {name: np.concatenate(parts, axis=1) for name, parts in pooled.items() if parts}
    return {name: _deviation(*both_2T) for name, both_2T in joined.items() if both_2T.size}


@torch.no_grad()
def learner_logprobs(model: nn.Module, processor: Processor, case: ParityCase, temperature: float) -> np.ndarray:
    """The learner's log-probs of a case's tokens (T), NaN on the first and on those the policy may not write.

    Tokens that the engine drew are scored at `temperature`, others at 1, as the engine does.
    """
    device = next(model.parameters()).device
    allowed_V = torch.from_numpy(processor.allowed_token_mask()).to(device)
    ids_1T = torch.tensor([case.token_ids], device=device)
    positions_31T = torch.from_numpy(processor.positions(case.token_ids, case.videos))[:, None]
    temperature_T = np.where(case.drawn, temperature, 1.0)
    logprobs_T = np.full(len(case.token_ids), np.nan)
    for part_temperature in np.unique(temperature_T):
        scored_T = (temperature_T == part_temperature) & allowed_V[ids_1T[0]].cpu().numpy()
        scored_T[0] = False
        found_1T, _ = token_logprobs(
            model,
            ids_1T,
            None,
            positions_31T.to(device),
            [processor.pack(video) for video in case.videos],
            allowed_V=allowed_V,
            temperature=float(part_temperature),
            scored_BT=torch.from_numpy(scored_T)[None].to(device),
        )
        logprobs_T[scored_T] = found_1T[0].float().cpu().numpy()[scored_T]
    return logprobs_T


def _deviation(engine: np.ndarray, learner: np.ndarray) -> Deviation:
    differences = np.abs(engine - learner)
    return Deviation(float(differences.max()), float(differences.mean()), len(differences), float(engine.std()))


def _sampled_max(segments: Mapping[str, Deviation]) -> float:
    return max(deviation.max for name, deviation in segments.items() if name != SEGMENT_NAMES[Segment.CONTEXT])
