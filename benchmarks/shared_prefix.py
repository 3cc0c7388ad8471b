"""The learner's tokens per CPU second: padded rows, packed rows, and packed rows with one opening for all siblings.

    OMP_NUM_THREADS=1 python benchmarks/shared_prefix.py [--sizes 64x80 650x200] [--repeats 3]

One group of G siblings with an opening of P tokens and S tokens of their own each, through forward and backward pass of
one policy with random weights; text only, so that nothing but the language model counts. "Padded" is what stock
transformers does (rows of equal length here: its best case). Padded and packed passes have at most 8,192 tokens.

Tokens are those of the trajectories, however often they are computed. The bound is G(P + S) / (P + GS): what sharing is
worth where the linear layers take all the time. All three are measured in turn, so that a busy machine slows all of
them. Log-probs of the first repeat must agree.

Legend: G siblings · T tokens of a trajectory.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from learner_work import Work, size_of
from tables import median_and_range, print_conditions, print_table
from torch import Tensor

from rl.algorithm.learner_batch import LearnerBatch, collate
from rl.algorithm.packing import Limits, alone, micro_batches, with_common_openings
from rl.policy.model import VideoPolicy
from rl.policy.processor import Processor
from rl.policy.scoring_head import Scoring, token_logprobs
from rl.policy.sizes import TextSize
from rl.trajectory import TrainingSample

HEADINGS = ("opening", "own", "padded tok/s", "packed tok/s", "shared tok/s", "packed/padded", "shared/padded")
SIZES = ("64x80", "650x200", "4000x600", "4000x3000")  # P x S
TOKENS = 8192  # of a padded or a packed pass, at most, unless one trajectory is longer; sharing needs the whole group
POLICIES = {  # two layers each, tied head
    "large": TextSize(2, 2048, 8192, 16, 4, 2048, is_tied=True),  # 126 M parameters
    "medium": TextSize(2, 1024, 4096, 8, 2, 2048, is_tied=True),  # 33 M: where a group takes more memory than there is
    "small": TextSize(2, 256, 512, 2, 1, 1024, is_tied=True),  # 1 M: to show that the program runs
}


@dataclass(frozen=True, slots=True)
class Measured:
    """One pass."""

    cpu_s: float
    logprobs: Tensor  # of all scored tokens


def main() -> None:
    """A row per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="PxS")
    parser.add_argument("--siblings", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--family", choices=("qwen2_5_vl", "qwen3_vl"), default="qwen2_5_vl")
    parser.add_argument("--policy", choices=POLICIES, default="large")
    options = parser.parse_args()
    print_conditions("torch", "transformers", repeats=options.repeats)
    with tempfile.TemporaryDirectory() as folder:
        size = replace(size_of(f"{options.family}/tiny"), text=POLICIES[options.policy])
        work = Work(size, Path(folder))
        policy, processor = work.policy("cpu", torch.float32).train(), work.processor()
        parameters = sum(parameter.numel() for parameter in policy.model.language_model.parameters())
        print(f"language model: {parameters / 1e6:.0f} M parameters, {options.siblings} siblings\n")
        rows = (_row(policy, processor, size, options) for size in options.sizes)
        print_table((*HEADINGS, "bound", "of the bound", "max gap (nat)"), rows)


def _row(policy: VideoPolicy, processor: Processor, size: str, options: argparse.Namespace) -> tuple[object, ...]:
    opening, own = map(int, size.split("x"))
    samples = _group(processor, opening, own, options.siblings)
    ways = {
        "padded": _padded(samples),
        "packed": _packed(samples, processor),
        "shared": _shared(samples, processor),
    }
    allowed_V = torch.from_numpy(processor.allowed_token_mask())
    found = [{name: _measured(policy, way, allowed_V) for name, way in ways.items()} for _ in range(options.repeats)]
    first, tokens = found[0], options.siblings * (opening + own)
    gap = max(float((first[name].logprobs - first["padded"].logprobs).abs().max()) for name in ("packed", "shared"))
    speeds = [median_and_range([tokens / each[name].cpu_s for each in found], ".0f") for name in ways]
    packed, shared = ([each["padded"].cpu_s / each[name].cpu_s for each in found] for name in ("packed", "shared"))
    bound = options.siblings * (opening + own) / (opening + options.siblings * own)
    of_bound = [each["packed"].cpu_s / each["shared"].cpu_s / bound for each in found]
    ratios = (median_and_range(packed, ".2f"), median_and_range(shared, ".2f"))
    return opening, own, *speeds, *ratios, f"{bound:.2f}", median_and_range(of_bound, ".2f"), f"{gap:.1e}"


def _group(processor: Processor, opening: int, own: int, siblings: int) -> list[TrainingSample]:
    random, writable = np.random.default_rng(0), np.flatnonzero(processor.allowed_token_mask())
    prompt, segments = random.choice(writable, opening).tolist(), (0,) * opening + (2,) * own
    zeros = (0.0,) * (opening + own)
    return [
        TrainingSample(
            token_ids=(*prompt, *random.choice(writable, own).tolist()),
            segment_ids=segments,
            turn_ids=(0,) * (opening + own),
            behavior_logprobs=zeros,
            advantages=zeros,
            loss_mask=tuple(segment > 0 for segment in segments),
            policy_versions=(0,) * (opening + own),
            videos=(),
        )
        for _ in range(siblings)
    ]


Way = Sequence[Callable[[VideoPolicy, Tensor], Tensor]]  # passes: policy, writable ids -> log-probs of scored tokens


def _padded(samples: Sequence[TrainingSample]) -> Way:
    rows = max(1, TOKENS // len(samples[0].token_ids))
    return [partial(_padded_pass, samples[first : first + rows]) for first in range(0, len(samples), rows)]


def _padded_pass(samples: Sequence[TrainingSample], policy: VideoPolicy, allowed_V: Tensor) -> Tensor:
    ids_BT = torch.tensor([sample.token_ids for sample in samples])
    mask_BT = torch.tensor([sample.loss_mask for sample in samples])
    positions_3BT = torch.arange(ids_BT.shape[1]).expand(3, *ids_BT.shape)
    attended = torch.ones_like(ids_BT)
    logp_BT, _ = token_logprobs(policy, ids_BT, attended, positions_3BT, [], allowed_V=allowed_V, scored_BT=mask_BT)
    return logp_BT[mask_BT]


def _packed(samples: Sequence[TrainingSample], processor: Processor) -> Way:
    cut = micro_batches(alone(samples), Limits(len(samples), TOKENS))
    cut.sort(key=lambda batch: batch[0].members)
    return [partial(_packed_pass, collate(samples, processor, sharings=batch)) for batch in cut]


def _shared(samples: Sequence[TrainingSample], processor: Processor) -> Way:
    return [partial(_packed_pass, collate(samples, processor, sharings=with_common_openings(samples, processor)))]


def _packed_pass(batch: LearnerBatch, policy: VideoPolicy, allowed_V: Tensor) -> Tensor:
    mask_BT = batch.loss_mask_BT
    scoring = Scoring(batch.places_BT[:, :-1][mask_BT[:, 1:]], batch.places_BT[mask_BT], allowed_V)
    inputs = batch.token_ids_R[None], None, batch.position_ids_3R[:, None]
    return policy(*inputs, packing=batch.packing, scoring=scoring)[0]


def _measured(policy: VideoPolicy, way: Way, allowed_V: Tensor) -> Measured:
    policy.zero_grad(set_to_none=True)
    started, found = time.process_time(), []
    for one_pass in way:
        logprobs = one_pass(policy, allowed_V)
        logprobs.sum().backward()
        found.append(logprobs.detach())
    return Measured(time.process_time() - started, torch.cat(found))


if __name__ == "__main__":
    main()
