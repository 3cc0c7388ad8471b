"""A whole GPU node: engines of both families, their shards and graphs, learners on NCCL, a run that shares its GPUs.

`python -m pytest tests/test_gpu.py -v`, in about ten minutes; benchmarks/GPU.md says what is compared with what. The
programs are those of the CPU suite, elsewhere run on CPUs, and the one below that no GPU is asked for. Limits on a GPU
are of what its kernels may round (TF32, other orders of sums), and have not been tightened by measurements.
"""

import functools
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from rl.config.policy import ScenesConfig, TinyPolicyConfig
from rl.evaluation.parity import CONTROL_FACTOR_BF16, ParityGates
from rl.policy.families import FAMILIES
from tests.rl.learner.test_learner import Ranks, furthest, relative_error
from tests.test_run import dynframe, steps_of

REPOSITORY = Path(__file__).parents[1]
SCENES = ScenesConfig(budget="none")
GATES = {  # limits in nat, by where and in what is computed
    ("cpu", "float32"): ParityGates(1e-4, 1e-4),
    ("cuda", "float32"): ParityGates(5e-3, 1e-3, CONTROL_FACTOR_BF16),
    ("cuda", "bfloat16"): ParityGates(0.5, 0.05, CONTROL_FACTOR_BF16),
}
ALIKE = {"float32": 5e-3, "bfloat16": 0.25}  # nat between two ways to compute the same on a GPU
GROWTH_MIB = 1.0  # of tensors, over the last half of the pushes
SHARED = (  # of every GPU one engine and one rank
    "policy.dtype=bfloat16",
    "placement.rollout_gpus=0.5",
    "placement.learner_gpus=0.5",
    "learner.zero_stage=2",
    "rollout.engine.gpu_memory_utilization=0.3",
)
GPUS = len(list(Path("/dev").glob("nvidia[0-9]*")))
needs_gpu = pytest.mark.gpu
on_cpus = [pytest.mark.vllm, pytest.mark.skipif(GPUS > 0, reason="the same is asked of this machine's GPUs")]
needs_two_gpus = [pytest.mark.gpu, pytest.mark.skipif(GPUS < 2, reason=f"needs 2 GPUs, this machine has {GPUS}")]


@pytest.fixture(scope="module")
def policy_of(tmp_path_factory):
    """(family) -> a tiny policy with two heads of keys for two shards, and two levels of DeepStack."""
    from rl.policy.tiny import build_tiny_policy

    @functools.cache
    def build(family):
        tiny = TinyPolicyConfig(family=family, num_layers=2, vision_layers=3, vocab_size=600)
        return build_tiny_policy(tiny, SCENES, tmp_path_factory.mktemp("policy"), seed=0)

    return build


@pytest.fixture(scope="module")
def engine_of(policy_of, tmp_path_factory):
    """What tests/gpu_node.py found of an engine with these settings; each is started once."""

    @functools.cache
    def start(device, family, dtype, **settings):
        out = tmp_path_factory.mktemp("engine") / "found.json"
        options = {"dtype": dtype, "gates": asdict(GATES[device, dtype]), **settings}
        ended = subprocess.run(
            [sys.executable, "-m", "tests.gpu_node", policy_of(family), json.dumps(options), out],
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=590,
        )
        assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-6000:]
        found = json.loads(out.read_text())
        assert found["device"] == device
        return found

    return start


def on_gpu(family, dtype, *, gpus=1, graphs=False):
    marks = needs_two_gpus if gpus > 1 else needs_gpu
    settings = {"tensor_parallel_size": gpus, "enforce_eager": not graphs}
    name = f"{family}-{dtype}-{gpus} GPU{'s' if gpus > 1 else ''}{'-graphs' if graphs else ''}"
    return pytest.param("cuda", family, dtype, settings, marks=marks, id=name)


@pytest.mark.parametrize(
    ("device", "family", "dtype", "settings"),
    [
        pytest.param("cpu", "qwen3_vl", "float32", {}, marks=on_cpus, id="without a GPU"),
        *(on_gpu(family, dtype) for family in FAMILIES for dtype in ("float32", "bfloat16")),
        *(on_gpu(family, "bfloat16", graphs=True) for family in FAMILIES),
        *(on_gpu(family, "bfloat16", gpus=2) for family in FAMILIES),
        on_gpu("qwen3_vl", "float32", gpus=2),
    ],
)
def test_an_engine_starts_agrees_with_the_learner_and_holds_what_is_pushed(
    engine_of, device, family, dtype, settings, record_property
):
    found = engine_of(device, family, dtype, **settings)
    record_property("parity", found["parity"])
    record_property("device memory MiB", found["memory_mib"])
    assert found["parity_failures"] == [] and found["parity"]["spread"] >= 1
    assert found["arrived"] == [True] * 10  # every parameter, from every shard
    assert found["returned"] <= ALIKE[dtype]  # the first weights answer as they did
    held = found["memory_mib"]
    assert max(held[5:]) - held[4] <= GROWTH_MIB
    assert (min(held) > 0) == (device == "cuda")


@needs_gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_cuda_graphs_change_nothing(engine_of, family):
    plain, graphs = (
        engine_of("cuda", family, "bfloat16", tensor_parallel_size=1, enforce_eager=eager) for eager in (True, False)
    )
    assert apart(plain, graphs) <= ALIKE["bfloat16"]


@pytest.mark.parametrize("family", [pytest.param(family, marks=needs_two_gpus) for family in FAMILIES])
def test_two_gpus_are_one_policy(engine_of, family):
    one, two = (engine_of("cuda", family, "bfloat16", tensor_parallel_size=gpus, enforce_eager=True) for gpus in (1, 2))
    assert apart(one, two) <= ALIKE["bfloat16"]


def apart(one, other):
    """Largest difference of greedy log-probs as far as two engines wrote the same tokens; the first one they must."""
    gaps = []
    for request in range(len(one["tokens"])):
        same = np.cumprod(np.equal(one["tokens"][request], other["tokens"][request])).astype(bool)
        assert same[0], (one["tokens"], other["tokens"])
        gaps.append(np.abs(np.subtract(one["logprobs"][request], other["logprobs"][request]))[same].max())
    return max(gaps)


@pytest.fixture(scope="module")
def ranks_on_gpus(policy_of, tmp_path_factory):
    """(number of ranks) -> learners with a GPU each; and the CPU's gradients and log-probs without DeepSpeed."""
    started = {}

    def get(world):
        if world not in started:
            started[world] = Ranks(world, policy_of, tmp_path_factory.mktemp("sockets"), "cuda")
        return started[world]

    yield get
    for ranks in started.values():
        ranks.stop()


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("world", [pytest.param(1, marks=needs_gpu), pytest.param(2, marks=needs_two_gpus)])
def test_learners_on_nccl_take_the_steps_of_plain_pytorch(ranks_on_gpus, world, stage, record_property):
    ranks = ranks_on_gpus(world)
    plain, learned = ranks("plain"), ranks("update", stage=stage, dtype="bfloat16")
    error = relative_error(learned["gradients"], plain["gradients"])
    record_property("relative error of the gradient", error)
    assert error < 0.14  # a cosine of .99
    assert furthest(learned["logprobs"], plain["logprobs"]) < 0.15


@needs_gpu
@pytest.mark.parametrize("stage", [2, 3])
def test_a_learner_on_a_gpu_goes_on_from_its_checkpoint(ranks_on_gpus, tmp_path, stage):
    found = ranks_on_gpus(1)("resumed", folder=tmp_path, stage=stage, dtype="bfloat16")
    assert found["loaded"] != found["fresh"] and found["steps"] == 1


@pytest.mark.parametrize("gpus", [pytest.param(1, marks=needs_gpu), pytest.param(2, marks=needs_two_gpus)])
@pytest.mark.timeout(1200)
def test_a_run_with_an_engine_and_a_learner_on_every_gpu_trains_agrees_and_resumes(tmp_path, gpus):
    shared = (*SHARED, f"rollout.num_workers={gpus}", f"learner.num_ranks={gpus}")
    dynframe(tmp_path, "train", "name=shared", "trainer.steps=2", *shared, timeout=590)
    dynframe(tmp_path, "train", "name=shared", "trainer.steps=3", *shared, timeout=590)
    steps = steps_of(tmp_path, "shared")
    assert [steps[step]["policy/version"] for step in (1, 2, 3)] == [1, 2, 3]
    for step in steps.values():
        assert step["parity/mean/reasoning"] < 0.05 and step["sync/verified_parameters"] > 20
        assert step["update/optimizer_steps"] == 1
