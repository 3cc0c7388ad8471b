"""The loss of one micro-batch, by the policy in training, and the metrics that describe it.

Legend: B samples of a micro-batch · T tokens of a sample, right-padded · S scored tokens · V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rl.algorithm.learner_batch import LearnerBatch
from rl.algorithm.loss import policy_loss, supervised_loss, token_weights
from rl.config.algorithm import LossConfig
from rl.learner.frozen_trunk import FrozenTrunk
from rl.learner.metrics import Tally, tally_parity, tally_policy
from rl.learner.mini_batch import MiniBatch
from rl.learner.sequence_parallel import ALONE, SequenceParallel
from rl.learner.shared_videos import SharedVideos
from rl.policy.geometry import PackedVideo
from rl.policy.scoring_head import Scoring, placed
from rl.policy.vision_tower import NOTHING, Encoded


class Objective:
    """Scores micro-batches with the policy in training and, where the loss needs it, with the reference policy.

    Args:
        policy: the policy in training, as a callable module.
        reference: the policy the run started from, callable likewise; needed if `options.kl_beta` > 0.
        allowed_V: bool; tokens that may be sampled.
        temperature: trajectories are sampled at.
        world_size: number of ranks that have samples of their own.
        parallel: ranks that have the same ones as this.
        trunk: of the vision towers of both, where it does not learn.
    """

    def __init__(
        self,
        policy: nn.Module,
        options: LossConfig,
        *,
        reference: Callable[..., Any] | None,
        allowed_V: Tensor,
        temperature: float,
        world_size: int,
        parallel: SequenceParallel = ALONE,
        trunk: FrozenTrunk | None = None,
    ) -> None:
        self._policy, self._options, self._reference = policy, options, reference
        self._allowed_V, self._temperature, self._world_size = allowed_V, temperature, world_size
        self._parallel = parallel
        self._trunk, self._shared = trunk, NOTHING
        self._tower_passes = 0  # one for each block of a pass

    @torch.no_grad()
    def logprobs(
        self, batch: LearnerBatch, scored_BT: Tensor | None = None, temperature: float | None = None
    ) -> Tensor:
        """The current policy's log-probs (B, T), nat, without gradient.

        Args:
            scored_BT: bool; which tokens are needed. None: all.
            temperature: None: that of sampling.
        """
        return self._score(self._policy, batch, scored_BT, temperature)[0]

    def losses(self, batch: LearnerBatch) -> list[tuple[float, int]]:
        """Of each sample the summed negative log-prob of its learned tokens, in nat, at temperature 1; their number."""
        learned_BT = batch.loss_mask_BT
        logp_BT = self.logprobs(batch, learned_BT, temperature=1.0)
        nll_B = -logp_BT.double().masked_fill(~learned_BT, 0.0).sum(1)
        return list(zip(nll_B.tolist(), learned_BT.sum(1).tolist(), strict=True))

    def policy_loss(
        self,
        part: MiniBatch,
        batch: LearnerBatch,
        old_BT: Tensor | None,
        tally: Tally,
        on_policy: list[tuple[LearnerBatch, Tensor]] | None,
        version: int | None = None,
    ) -> Tensor:
        """The surrogate loss of a micro-batch of `part`: a scalar, a sum, with gradient.

        Args:
            old_BT: log-probs the ratio is taken against; None: the current ones.
            on_policy: gets the batch, without its pixels, and the log-probs, while the policy is still the one that
                sampled; None: it no longer is.
            version: of this policy: tokens that an older one sampled are not compared. None: it sampled all.
        """
        options = self._options
        logp_BT, entropy_BT = self._score(self._policy, batch, batch.loss_mask_BT)
        weights_BT = self._weights(batch, part, options.normaliser)
        terms = policy_loss(
            logp_BT,
            logp_BT.detach() if old_BT is None else old_BT,
            batch.advantages_BT,
            weights_BT,
            batch.loss_mask_BT,
            ratio=options.ratio,
            clip_low=options.clip_low,
            clip_high=options.clip_high,
            behavior_logp_BT=batch.behavior_logprobs_BT,
            tis_cap=options.tis_cap,
            ref_logp_BT=self._reference_logprobs(batch),
            kl_beta=options.kl_beta,
        )
        kl, share = (weights_BT * terms.kl_BT).sum(), self._share(part)
        tally.mean("loss/surrogate", terms.loss.detach() - options.kl_beta * kl, share)
        tally.mean("loss/kl", kl, share)
        tally_policy(tally, batch, terms, entropy_BT)
        if on_policy is not None:
            is_own_BT = batch.loss_mask_BT if version is None else batch.policy_versions_BT == version
            tally_parity(tally, batch, logp_BT, is_own_BT)
            on_policy.append((replace(batch, videos=()), logp_BT.detach().masked_fill(~is_own_BT, math.nan)))
        return _finite_or_nan_gradient(terms.loss, logp_BT)

    def supervised_loss(self, part: MiniBatch, batch: LearnerBatch, tally: Tally) -> Tensor:
        """Minus the mean log-prob of the tokens learned, at temperature 1: this micro-batch's summands of it."""
        logp_BT, entropy_BT = self._score(self._policy, batch, batch.loss_mask_BT, temperature=1.0)
        loss = supervised_loss(logp_BT, self._weights(batch, part, "token"), batch.loss_mask_BT)
        tally.mean("loss/nll", loss.detach(), self._share(part))
        tally.mean("policy/entropy", entropy_BT[batch.loss_mask_BT].sum(), batch.loss_mask_BT.sum())
        return _finite_or_nan_gradient(loss, logp_BT)

    @contextmanager
    def sharing(self, shared: SharedVideos) -> Iterator[None]:
        """Meanwhile the policy in training is given the tokens of these videos."""
        self._shared = Encoded(tokens=shared.tokens)
        self._tower_passes += shared.passes
        try:
            yield
        finally:
            self._shared = NOTHING

    def taken_tower_passes(self) -> int:
        """How often this rank's vision towers have encoded a block since the last call, their trunks apart from it."""
        passes, self._tower_passes = self._tower_passes, 0
        return passes

    def _share(self, part: MiniBatch) -> float:
        """A micro-batch's share of an optimizer step, so that sums over micro-batches and ranks count once."""
        return 1 / (len(part) * self._world_size)

    def _weights(self, batch: LearnerBatch, part: MiniBatch, normaliser: str) -> Tensor:
        return token_weights(
            batch.segment_ids_BT,
            batch.loss_mask_BT,
            part.totals,
            normaliser=normaliser,
            constant_tokens=self._options.constant_tokens,
        )

    def _reference_logprobs(self, batch: LearnerBatch) -> Tensor | None:
        if self._reference is None:
            return None
        with torch.no_grad():
            return self._score(self._reference, batch, batch.loss_mask_BT)[0]

    def _score(
        self, model: Callable[..., Any], batch: LearnerBatch, scored_BT: Tensor | None, temperature: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies (B, T), each token's predicted by the hidden state before it in its own sample."""
        if scored_BT is None:
            scored_BT = self._allowed_V[batch.token_ids_BT] & (batch.places_BT >= 0)
        scored_BT = torch.cat([torch.zeros_like(scored_BT[:, :1]), scored_BT[:, 1:]], dim=1)
        predictors_S, targets_S = batch.places_BT[:, :-1][scored_BT[:, 1:]], batch.places_BT[scored_BT]
        part, here_S = self._parallel.part(batch.token_ids_R.numel()), None
        if part is not None:
            here_S = (predictors_S >= part.start) & (predictors_S < part.stop)
            predictors_S, targets_S = predictors_S[here_S] - part.start, targets_S[here_S]
        temperature = self._temperature if temperature is None else temperature
        scored = self._with_features(model, batch.videos)(
            batch.token_ids_R[None],
            None,
            batch.position_ids_3R[:, None],
            batch.videos,
            packing=batch.packing,
            part=part,
            scoring=Scoring(predictors_S, targets_S, self._allowed_V, temperature),
        )
        if here_S is not None:
            scored = tuple(self._parallel.summed(placed(values, here_S)) for values in scored)
        logprobs_S, entropies_S = scored
        return placed(logprobs_S, scored_BT), placed(entropies_S, scored_BT)

    def _with_features(self, model: Callable[..., Any], videos: Sequence[PackedVideo]) -> Callable[..., Any]:
        """The model, told what is known of these videos: what a trunk makes of them that does not learn, or tokens."""
        if self._trunk is not None:
            return partial(model, encoded=Encoded(self._trunk.features_of(videos)))
        given = self._shared if model is self._policy else NOTHING
        self._tower_passes += len({video for video in videos if video.digest not in given.tokens})
        return partial(model, encoded=given)


def _finite_or_nan_gradient(loss: Tensor, logp_BT: Tensor) -> Tensor:
    """The loss; if it is not finite, one whose gradient is not either (clamp's is 0 at NaN), so the step is skipped."""
    return loss if torch.isfinite(loss) else logp_BT.sum() * math.nan
