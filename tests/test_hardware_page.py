"""The page of what fits which GPUs is what its generator writes today."""

from dataclasses import replace
from pathlib import Path

import pytest

from docs import hardware
from rl.config.file import load_config
from rl.config.policy import LoraConfig
from rl.memory_plan.gpus import GPUS
from rl.memory_plan.plan import Hardware, memory_plan

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(autouse=True)
def at_the_repository(monkeypatch):
    monkeypatch.chdir(DOCS.parent)


def test_the_page_is_up_to_date():
    assert (DOCS / "hardware.md").read_text() == hardware.page(), "run: python docs/hardware.py"


def test_more_gpus_and_larger_ones_never_fit_less():
    """Of what is trained in full: LoRA is shown where nothing else fits, at a longer context perhaps."""

    def tokens(size, count, gpu):
        fit = hardware.first_fit(size, count, gpu)
        return int(fit.told.partition("k")[0]) if fit and "LoRA" not in fit.told else 0

    for size in (hardware.published_size("qwen2_5_vl", "7b"), hardware.published_size("qwen3_vl", "2b")):
        found = [[tokens(size, count, gpu) for gpu in hardware.MEMORY.values()] for count in hardware.NUMBERS]
        assert all(row == sorted(row) for row in found)
        assert all(list(column) == sorted(column) for column in zip(*found, strict=True))


@pytest.mark.parametrize("name", [("qwen2_5_vl", "3b"), ("qwen3_vl", "4b")])
def test_low_rank_updates_fit_one_small_gpu(name):
    fit = hardware.first_fit(hardware.published_size(*name), 1, hardware.MEMORY["24 GB"])
    assert fit is not None and "LoRA" in fit.told


@pytest.mark.parametrize("name", [("qwen2_5_vl", "3b"), ("qwen3_vl", "4b")], ids="_".join)
def test_the_configuration_for_one_small_gpu_fits_it(name):
    own = "_".join(name)
    config = load_config([f"configs/sd_grpo_{own}.yaml", "configs/lora.yaml", f"configs/one_gpu_24gb_{own}.yaml"])
    gpu = Hardware(gpu_gib=GPUS[config.placement.gpu])
    assert memory_plan(config, hardware.structure(*name), gpu).fits
    full = replace(config, policy=replace(config.policy, lora=LoraConfig()))
    assert not memory_plan(full, hardware.structure(*name), gpu).fits
