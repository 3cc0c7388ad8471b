"""The schedule's shape, and whose word counts in DeepSpeed's configuration."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.config.errors import ConfigError
from rl.config.learner import LearnerConfig, OptimizerConfig
from rl.learner.settings import deepspeed_settings, learning_rate, steps_fused, uses_cuda

OPTIONS = OptimizerConfig(lr=1.0, warmup_fraction=0.2, min_lr_fraction=0.1)


def test_the_rate_warms_up_linearly_and_falls_as_a_cosine():
    rates = [learning_rate(step, 10, OPTIONS) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[5] == pytest.approx(0.1 + 0.9 * 0.6113, abs=1e-4)
    assert rates[9] == pytest.approx(0.1)


@given(st.integers(1, 500), st.floats(0, 1), st.floats(0, 1))
def test_the_rate_stays_within_its_bounds_and_never_rises_after_the_warm_up(total, warmup, floor):
    options = OptimizerConfig(lr=2.0, warmup_fraction=warmup, min_lr_fraction=floor)
    rates = [learning_rate(step, total, options) for step in range(total + 3)]
    assert all(0 < rate <= 2.0 or floor == 0 for rate in rates)
    falling = rates[max(0, round(warmup * total) - 1) :]
    assert falling == sorted(falling, reverse=True)


def test_our_keys_win_and_theirs_are_kept(tmp_path):
    path = tmp_path / "extra.yaml"
    path.write_text("zero_optimization: {stage: 1, offload_optimizer: {device: cpu}}\nwall_clock_breakdown: true\n")
    settings = deepspeed_settings(LearnerConfig(zero_stage=3, deepspeed_config=str(path)), "bfloat16", 1000)
    assert settings["zero_optimization"]["stage"] == 3
    assert settings["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert settings["wall_clock_breakdown"] is True
    assert settings["bf16"] == {"enabled": True}
    assert settings["data_types"] == {"grad_accum_dtype": "fp32"}


@pytest.mark.parametrize(
    ("extra", "device", "fused"),
    [
        ("{}", "cuda", True),
        ("{}", "cpu", False),
        ("zero_optimization: {offload_optimizer: {device: none}}", "cuda", True),
        ("zero_optimization: {offload_optimizer: {device: cpu}}", "cuda", False),
    ],
)
def test_adamw_is_fused_where_its_state_lies_on_a_gpu(tmp_path, extra, device, fused):
    path = tmp_path / "extra.yaml"
    path.write_text(extra)
    settings = deepspeed_settings(LearnerConfig(deepspeed_config=str(path)), "bfloat16", 1000)
    assert steps_fused(settings, device) is fused


def test_a_second_optimizer_is_ignored(tmp_path, caplog):
    path = tmp_path / "extra.json"
    path.write_text('{"optimizer": {"type": "Adam"}}')
    assert "optimizer" not in deepspeed_settings(LearnerConfig(deepspeed_config=str(path)), "float32", 1000)
    assert "learner.optimizer" in caplog.text


def test_numbers_of_json_are_numbers_and_its_tabs_are_no_fault(tmp_path):
    path = tmp_path / "extra.json"
    path.write_text('{\n\t"zero_optimization": {"reduce_bucket_size": 5e8, "sub_group_size": 1E9}\n}')
    settings = deepspeed_settings(LearnerConfig(deepspeed_config=str(path)), "float32", 1000)
    assert settings["zero_optimization"]["reduce_bucket_size"] == 5e8


@pytest.mark.parametrize("content", [None, "- a list", "{"])
def test_a_file_that_cannot_be_used_is_named(tmp_path, content):
    path = tmp_path / "extra.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"learner\.deepspeed_config: .*extra\.json"):
        deepspeed_settings(LearnerConfig(deepspeed_config=str(path)), "float32", 1000)


@pytest.mark.parametrize(
    ("present", "accelerator", "used"), [(True, "", True), (True, "cpu", False), (False, "", False)]
)
def test_a_gpu_is_left_alone_where_ds_accelerator_says_cpu(monkeypatch, present, accelerator, used):
    monkeypatch.setattr("torch.cuda.is_available", lambda: present)
    monkeypatch.setenv("DS_ACCELERATOR", accelerator)
    assert uses_cuda() is used
