"""vLLM's side of the policy: where videos stand in a prompt, and how the plugin makes itself known."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from rl.policy.families import FAMILIES

pytestmark = pytest.mark.vllm


def test_plugin_is_installed_and_cheap_to_import():
    from importlib.metadata import entry_points

    (found,) = (point for point in entry_points(group="vllm.general_plugins") if point.name == "dynframe")
    script = (
        "import sys, rl.policy.vllm.plugin; sys.exit(any(m in sys.modules for m in ('torch', 'vllm', 'transformers')))"
    )

    assert found.value == "dynframe_rl.vllm_plugins:register_policies"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_registering_twice_is_harmless():
    from vllm import ModelRegistry

    from rl.policy.vllm import plugin

    plugin.register()
    plugin.register()

    assert {family.architecture for family in FAMILIES.values()} <= set(ModelRegistry.get_supported_archs())


def test_vllm_looks_for_kernels_in_its_own_modules_only():
    from vllm.triton_utils import dispatcher

    from rl.policy.vllm.plugin import look_for_kernels_at_home

    look_for_kernels_at_home()
    searched = dispatcher.sys.modules

    assert {name.partition(".")[0] for name in searched} == {"vllm"}
    assert searched["vllm.triton_utils.dispatcher"] is dispatcher


WITHOUT_SOUND = """
from rl.policy.vllm.plugin import without_sound

with without_sound():
    try:
        import scipy.signal
    except ModuleNotFoundError:
        print("none")

import scipy.signal

print(callable(scipy.signal.resample_poly))
"""


def test_what_is_imported_without_sound_finds_none_and_the_rest_of_the_process_does():
    """In a process of its own: scipy cannot be imported twice."""
    ended = subprocess.run([sys.executable, "-c", WITHOUT_SOUND], capture_output=True, text=True, timeout=120)
    assert ended.stdout.split() == ["none", "True"], ended.stderr


PARENT = """
import multiprocessing, os, time
from rl.policy.vllm.plugin import end_with_parent

def engine(ready):
    end_with_parent()
    ready.send(os.getpid())
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=engine, args=(theirs,)).start()
    print(ours.recv(), flush=True)
    os.kill(os.getpid(), 9)
"""


def test_an_engine_process_ends_with_the_worker_that_started_it_however_that_dies(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[4])}
    parent = subprocess.run([sys.executable, tmp_path / "parent.py"], env=environment, capture_output=True, text=True)
    assert parent.returncode == -signal.SIGKILL, parent.stderr
    engine = int(parent.stdout)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(engine).wait(timeout=20)
    assert not psutil.pid_exists(engine)


def test_windows_are_attended_to_in_one_call_per_length_with_the_bits_of_vllm_s_loop(load_model, build_policy):
    import torch
    from vllm.v1.attention.ops.vit_attn_wrappers import torch_sdpa_wrapper

    from rl.policy.vllm.scene_engine import WindowsTogether

    model = load_model(build_policy("qwen2_5_vl", False)).model
    attention = [block.attn.attn for block in model.visual.blocks]
    assert all(isinstance(layer, WindowsTogether) for layer in attention)
    lengths = [64, 16, 64, 4, 16, 64]
    bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0)
    query, key, value = torch.randn(3, 1, sum(lengths), 4, 16, generator=torch.Generator().manual_seed(0))
    together = attention[0](query=query, key=key, value=value, cu_seqlens=bounds, max_seqlen=None)
    assert torch.equal(together, torch_sdpa_wrapper(query, key, value, attention[0]._scale, bounds))
