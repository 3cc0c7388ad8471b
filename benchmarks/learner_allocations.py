"""A learner rank whose large tensors have sizes and no contents: what it allocates is counted, at any size.

The real learner, DeepSpeed included, takes two updates in one process. Operations on tensors above a megabyte are not
computed: their results are allocated and left untouched, so that a rank of a 3 B policy takes no more memory than its
imports; small ones (masks, positions, losses) are. The other ranks are torch's fake process group. Every allocation and
release is in the record of torch's profiler, whose largest sum per phase is the measured peak.
"""

from __future__ import annotations

import gc
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0"}

import numpy as np
import torch
import torch.distributed as dist
from memory_plan import Case, model_config_of, run_config, sample
from torch.profiler import ProfilerActivity, profile, record_function
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import rl.learner.learner as learner_module
from rl.config.policy import TinyPolicyConfig
from rl.policy.configuration import own_configuration
from rl.policy.families import FAMILIES
from rl.policy.model import policy_class
from rl.policy.packed_attention import PACKED
from rl.policy.policy_folder import flexivideo_section
from rl.policy.structure import read_structure
from rl.policy.tiny_tokenizer import tiny_processor, train_tokenizer

LARGE = 2**20  # bytes
PHASE = "phase:"
FACTORIES = ("zeros", "full", "ones")  # would write what they make
aten = torch.ops.aten
COMPUTED = {aten.index.Tensor, aten.nonzero.default, aten._local_scalar_dense.default}  # shapes that depend on values


class Untouched(TorchDispatchMode):
    """Allocates the results of operations on large tensors, and computes only the others."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """One operation."""
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if str(kwargs.get("device")) == "meta" or any(tensor.device.type == "meta" for tensor in tensors):
            return func(*args, **kwargs)
        namespace, _, name = func._schema.name.partition("::")
        if name in FACTORIES and math.prod(args[0]) * 4 > LARGE:
            return torch.empty(args[0], dtype=kwargs.get("dtype"))
        small = all(tensor.numel() * tensor.element_size() <= LARGE for tensor in tensors)
        if small or namespace != "aten" or func in COMPUTED:
            return func(*args, **kwargs)
        written = [
            a for a, s in zip(args, func._schema.arguments, strict=False) if s.alias_info and s.alias_info.is_write
        ]
        if func._schema.is_mutable and written:
            return written[0] if len(func._schema.returns) == 1 else (tuple(written) if func._schema.returns else None)
        if func._schema.is_mutable or any(returned.alias_info for returned in func._schema.returns):
            return func(*args, **kwargs)  # a view
        return allocated(func, args, kwargs)


def allocated(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Results of the shapes and strides that the operation would have, uninitialised."""
    on_meta, named = tree_map_only(torch.Tensor, lambda tensor: tensor.detach().to("meta"), (tuple(args), kwargs))
    if "device" in named:
        named["device"] = torch.device("meta")

    def real(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() * tensor.element_size() <= LARGE:
            return torch.zeros(tensor.shape, dtype=tensor.dtype)
        elements = tensor.untyped_storage().nbytes() // tensor.element_size()
        return torch.empty(elements, dtype=tensor.dtype).as_strided(tensor.size(), tensor.stride())

    return tree_map_only(torch.Tensor, real, func(*on_meta, **named))


def count(case: Case, vocabulary: str) -> dict[str, float]:
    """Bytes of the backward pass and of the optimizer's step at their worst, of rank 0."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=case.ranks)
    config, tiny = run_config(case), TinyPolicyConfig(family=case.family)
    processor = tiny_processor(tiny, config.policy.scenes, "none")
    learner_module.Processor = _Given(processor)
    loads = next(name for name in ("map_policy", "load_policy") if hasattr(learner_module, name))
    setattr(learner_module, loads, lambda *_, **__: random_policy(case, vocabulary))
    vocabulary_of = train_tokenizer(TinyPolicyConfig().vocab_size).get_vocab(True)
    shapes = model_config_of(case, vocabulary, vocabulary_of)
    learner_module.structure_of = lambda *_: read_structure(shapes, "none", init_frames=2)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded, Untouched():
        learner = learner_module.Learner(
            "none",
            policy=config.policy,
            learner=config.learner,
            algorithm=config.algorithm,
            temperature=1.0,
            total_steps=10,
            world_size=case.ranks,
        )
        learner._objective._allowed_V = allowed(processor, learner._engine.module.config.text_config.vocab_size)
        learner._engine.apply = marked(learner._engine.apply)
        samples = [sample(case, processor, seed=0)] * 2  # siblings: a micro-batch each, with the same block
        for _ in range(2):
            gc.collect()
            with record_function(f"{PHASE}backward"):
                pass
            learner.update(samples)
    return peaks(recorded)


class _Given:
    """Stands for Processor, whose `from_pretrained` reads a folder."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def from_pretrained(self, *_: Any) -> Any:
        """The one that is there."""
        return self._processor


def marked(apply: Callable[[], Any]) -> Callable[[], Any]:
    """The optimizer's step, its beginning and its end noted in the profiler's record."""

    def step() -> Any:
        with record_function(f"{PHASE}step"):
            pass
        outcome = apply()
        with record_function(f"{PHASE}end"):
            pass
        return outcome

    return step


def peaks(recorded: Any) -> dict[str, float]:
    """The largest sum of allocations per phase, the second update's alike."""
    events = recorded.profiler.kineto_results.events()
    marks = [(e.start_ns(), e.name(), e.nbytes()) for e in events if e.name() == "[memory]"]
    marks += [(e.start_ns(), e.name(), 0) for e in events if e.name().startswith(PHASE)]
    alive, phase, most = 0, "loading", {}
    for _, name, num_bytes in sorted(marks):
        alive += num_bytes
        phase = phase if name == "[memory]" else name.removeprefix(PHASE)
        most[phase] = max(most.get(phase, 0), alive)
    return {"backward": most["backward"], "step": most["step"]}


def random_policy(case: Case, vocabulary: str) -> torch.nn.Module:
    """The policy, its weights whatever lies there."""
    found = model_config_of(case, vocabulary, train_tokenizer(TinyPolicyConfig().vocab_size).get_vocab(True))
    found["vision_config"]["flexivideo"] = flexivideo_section(run_config(case).policy.scenes)
    family = FAMILIES[case.family]
    torch.set_default_dtype(getattr(torch, case.dtype))
    with torch.device("meta"):
        policy = policy_class(family)(own_configuration(found, family))
    torch.set_default_dtype(torch.float32)
    policy.to_empty(device="cpu")
    policy.tie_weights()
    policy.config.text_config._attn_implementation = PACKED
    return policy


def allowed(processor: Any, rows: int) -> torch.Tensor:
    """Which ids may be written, of a vocabulary with more rows than the tokenizer has tokens."""
    mask = np.zeros(rows, dtype=bool)
    few = processor.allowed_token_mask()[:rows]
    mask[: len(few)] = few
    return torch.from_numpy(mask)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(count(Case(**given["case"]), given["vocabulary"])))
