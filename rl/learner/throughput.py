"""How fast a learner works: tokens per second, operations of its model, and their share of what its GPUs could do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from rl.algorithm.packing import Sharing
from rl.policy.flops import VideoShape, Workload
from rl.trajectory import TrainingSample

# dense bfloat16 TFLOP/s by NVIDIA's data sheets (with sparsity they print twice as much); the first that fits counts
PEAK_TFLOPS: tuple[tuple[str, float], ...] = (
    (r"B200|B300", 2250.0),
    (r"H100 NVL|H200 NVL", 835.0),
    (r"H100 PCIE", 756.0),
    (r"H100|H200|H800|GH200", 989.0),
    (r"H20", 148.0),
    (r"A100|A800", 312.0),
    (r"L40S", 362.0),
    (r"L40", 181.0),
    (r"L4", 121.0),
    (r"A40", 150.0),
    (r"A10G", 70.0),
    (r"A10", 125.0),
    (r"RTX A6000", 155.0),
    (r"RTX 4090", 165.0),
    (r"RTX 3090", 71.0),
)


def peak_tflops(device_name: str) -> float | None:
    """Dense bfloat16 TFLOP/s of a GPU as torch.cuda.get_device_name() calls it; None: not in the table."""
    for pattern, peak in PEAK_TFLOPS:
        if re.search(rf"(?<![A-Z0-9])({pattern})(?![A-Z0-9])", device_name.upper()):
            return peak
    return None


def workload(samples: Sequence[TrainingSample], sharings: Iterable[Sharing]) -> Workload:
    """What learning from these samples needs: what they share once, each video block once through the tower.

    Args:
        sharings: all samples, as micro-batches compute them.
    """
    videos = {frames.digest: frames for sample in samples for frames in sample.videos}
    sharings = list(sharings)
    return Workload(
        tokens=sum(sharing.size for sharing in sharings),
        pairs=sum(
            sharing.tokens**2 + sum(own * (sharing.tokens + own) for own in sharing.own_tokens) for sharing in sharings
        ),
        scored=sum(map(sum, (sample.loss_mask for sample in samples))),
        videos=tuple(VideoShape(frames.scene_lengths, frames.height, frames.width) for frames in videos.values()),
    )


def throughput(numbers: Mapping[str, float], *, ranks: int, peak: float | None) -> dict[str, float]:
    """Rates of an update from its numbers over all ranks.

    Args:
        numbers: with update/tokens, update/flops and update/seconds.
        peak: TFLOP/s of one rank's device; None: unknown, and MFU is left out.
    """
    seconds, flops = numbers["update/seconds"], numbers["update/flops"]
    rates = {
        "update/tokens_per_s": numbers["update/tokens"] / seconds,
        "update/tokens_per_s_per_rank": numbers["update/tokens"] / seconds / ranks,
    }
    return rates if peak is None else rates | {"update/mfu": flops / (seconds * ranks * peak * 1e12)}
