"""One engine in a process of its own, for test_gpu.py: `python -m tests.gpu_node POLICY '{"dtype": "bfloat16"}' OUT`.

It is asked, compared with the learner, given other weights again and again, read back after each push, and asked once
more. What was found is written to OUT as JSON. The vLLM that is installed decides where it computes, so that the same
program runs on CPUs and on GPUs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from rl.config.policy import PolicyConfig
from rl.config.rollout import EngineConfig
from rl.evaluation.parity import ParityGates, measure_parity
from rl.policy.processor import Processor
from tests.actors.engine.test_engine import SCENES, checksums_of, clip, make_loud, opening, play_group, request, run

PUSHES = 10


def main(folder: Path, *, dtype: str = "float32", gates: dict[str, float], **settings: object) -> dict[str, object]:
    """What one engine did.

    Args:
        gates: of rl.evaluation.parity.ParityGates.
        settings: of rl.config.rollout.EngineConfig.
    """
    from vllm.platforms import current_platform

    from actors.engine.engine import make_engine

    device = "cpu" if current_platform.is_cpu() else "cuda"
    config = EngineConfig(kv_cache_bytes=64 * 2**20, gpu_memory_utilization=0.3, **settings)
    engine = make_engine(folder, PolicyConfig(scenes=SCENES, dtype=dtype), config, seed=0)
    try:
        processor, learner = Processor.from_pretrained(folder, SCENES), make_loud(folder, engine, dtype).to(device)
        asked = greedy(processor)
        before = run(engine, asked)
        group = play_group(engine, processor, siblings=4)
        parity = measure_parity(engine, learner, processor, [group], temperature=1.0)
        weights = {name: value.detach().cpu() for name, value in learner.named_parameters()}
        arrived, memory_mib = [], []
        for push in range(PUSHES):
            sent = {name: value.flip(0) if push % 2 == 0 else value for name, value in weights.items()}
            engine.load_weights(sent.items(), engine.policy_version + 1)
            run(engine, asked)
            arrived.append(engine.checksums(list(sent)) == checksums_of(sent))
            memory_mib.append(engine.device_memory_mib())
        after = run(engine, asked)  # the last push brought the first weights back
    finally:
        engine.close()
    return {
        "device": device,
        "tokens": [one.token_ids for one in before],
        "logprobs": [one.logprobs for one in before],
        "returned": max(gap(a, b) for a, b in zip(before, after, strict=True)),
        "parity": parity.as_dict(),
        "parity_failures": parity.failures(ParityGates(**gates)),
        "arrived": arrived,
        "memory_mib": memory_mib,
    }


def greedy(processor: Processor) -> list:
    """Requests that draw nothing: a video each, scenes of several lengths."""
    videos = [clip(processor, seed=seed, frames=6 + 3 * seed) for seed in range(4)]
    return [request(opening(processor, video), [video], tokens=16, temperature=0.0) for video in videos]


def gap(one, other) -> float:
    """Largest difference of two completions' log-probs as far as their tokens are the same; the first one must be."""
    same = np.cumprod(np.equal(one.token_ids, other.token_ids)).astype(bool)
    assert same[0], (one.token_ids, other.token_ids)
    return float(np.abs(np.subtract(one.logprobs, other.logprobs))[same].max())


if __name__ == "__main__":
    Path(sys.argv[3]).write_text(json.dumps(main(Path(sys.argv[1]), **json.loads(sys.argv[2]))))
