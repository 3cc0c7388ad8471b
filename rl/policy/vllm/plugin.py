"""vLLM's way in: the entry point `vllm.general_plugins` calls `register` in every process of an engine.

Cheap to import. Everything that bends vLLM or what surrounds it to this project stands here and nowhere else.
"""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import connection
from types import ModuleType, SimpleNamespace

from rl.policy.families import FAMILIES

WORKER_EXTENSION = "rl.policy.vllm.live_weights.LiveWeights"
LINK_ENGINE = "dynframe"  # of vLLM's weight_transfer_config: weights come over rl.weight_transfer.link
BATCH_INVARIANT = (
    "dynframe_batch_invariant"  # key of vLLM's additional_config: nothing may depend on what else the engine computes
)

TORCHVISION_MODULE = "transformers.models.qwen2_vl.image_processing_qwen2_vl"
SOUND = ("scipy.signal",)
PILLOW_MODULE = "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl"

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # a policy is a folder; nothing is looked up
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",  # its warnings, several per request on CPU, are about what we do on purpose
}
CPU_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # a step of a small policy is 50 times slower with two threads on busy cores
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine runs in the worker's process
    "TORCHDYNAMO_DISABLE": "1",  # nothing is compiled: no C compiler is needed
}
GPU_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # else Ray's, one per CPU of the worker: vLLM keeps them, and they spin between its steps
}


def engine_environment(device: str) -> dict[str, str]:
    """Environment of a process that holds an engine, to be set before torch is imported.

    Args:
        device: "cpu" or "cuda".
    """
    return ENVIRONMENT | (CPU_ENVIRONMENT if device == "cpu" else GPU_ENVIRONMENT)


def register() -> None:
    """Make FlexiVideo known to vLLM, by name: the model file is imported when a checkpoint asks for it."""
    alias_missing_torchvision()
    look_for_kernels_at_home()
    end_with_parent()
    importlib.import_module("rl.policy.configuration").register()
    transfers = importlib.import_module("vllm.distributed.weight_transfer.factory").WeightTransferEngineFactory
    if LINK_ENGINE not in transfers._registry:
        transfers.register_engine(LINK_ENGINE, "rl.policy.vllm.link_engine", "LinkTransferEngine")
    ModelRegistry = importlib.import_module("vllm").ModelRegistry
    known = ModelRegistry.get_supported_archs()
    for family in FAMILIES.values():
        if family.architecture not in known:
            ModelRegistry.register_model(family.architecture, family.engine)


def end_with_parent() -> None:
    """End this process with the one that started it, if vLLM did: an engine whose worker was killed would go on waiting
    for requests, and keep the GPU from the worker's replacement."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def alias_missing_torchvision() -> None:
    """Let vLLM import Qwen2-VL without torchvision.

    vLLM 0.32 takes one function, `smart_resize`, from transformers' torchvision image processor. Without torchvision
    that module cannot be imported; its Pillow twin defines the same function, so it answers under both names. We use
    neither: frames arrive packed.
    """
    if importlib.util.find_spec("torchvision") is not None or TORCHVISION_MODULE in sys.modules:
        return
    pillow = importlib.import_module(PILLOW_MODULE)
    twin = ModuleType(TORCHVISION_MODULE, "Stands in for the torchvision image processor, which is not installed.")
    twin.smart_resize = pillow.smart_resize
    sys.modules[TORCHVISION_MODULE] = twin


def look_for_kernels_at_home() -> None:
    """Have vLLM look for kernels to replace in its own modules only.

    Without Triton, vLLM 0.32 looks at every attribute of every module that is loaded: half a second of each start, and
    it trips over llvmlite's library handles, which answer `__dict__` with something that is no mapping.
    """
    importlib.import_module("vllm.triton_utils.dispatcher").sys = _OwnModules()


class _OwnModules(SimpleNamespace):
    """What vLLM's search asks of `sys`."""

    @property
    def modules(self) -> dict[str, ModuleType]:
        """Those of vLLM, by name."""
        return {name: module for name, module in list(sys.modules.items()) if name.split(".", 1)[0] == "vllm"}


@contextmanager
def without_sound() -> Iterator[None]:
    """Import vLLM as where scipy is not installed, which it takes to resample sound: the policy hears none, and with
    all that it imports it is a twentieth of an engine's start."""
    absent = [name for name in SOUND if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
