"""What `dynframe parity` asks of a policy before it compares: whether it was trained here, wherever its folder lies."""

import json

import pytest
from rich.console import Console

from rl.cli import inspection
from rl.config.file import load_config
from rl.policy.families import QWEN3_VL
from tests.hub_cache import NAME, put_in_cache


def config_of(path):
    return load_config([], ["rewards.answer.fn=answer", f"policy.path={path}", "cold_start.enabled=false"])


@pytest.mark.parametrize("on_hub", [False, True])
@pytest.mark.parametrize(
    ("config", "trained"),
    [
        ({"model_type": QWEN3_VL.model_type}, False),
        ({"model_type": QWEN3_VL.own_model_type, "vision_config": {"flexivideo": {"tau": 0.5}}}, True),
    ],
)
def test_ours_is_trained_here_and_a_stock_one_is_not(config, trained, on_hub, tmp_path, monkeypatch):
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text(json.dumps(config))
    if on_hub:
        put_in_cache(tmp_path, tmp_path.with_name(f"{tmp_path.name}-hub"), monkeypatch)
    assert inspection.is_trained_here(config_of(NAME if on_hub else tmp_path)) == trained


def test_a_policy_is_downloaded_before_parity_asks_whether_it_was_trained_here(monkeypatch):
    class Prepared(Exception):
        pass

    def prepare(*_):
        raise Prepared

    monkeypatch.setattr(inspection, "initial_policy", prepare)
    with pytest.raises(Prepared):
        inspection.run_parity(config_of(NAME), Console(quiet=True), num_tasks=1)
