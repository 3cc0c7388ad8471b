"""Which vision_config a geometry's name stands for, and which cannot be used."""

import json

import pytest

from rl.config.policy import TinyPolicyConfig
from rl.encode_stats.vision_config import VisionSizes, read_vision_config
from rl.policy.tiny import vision_section
from rl.policy.token_ids import PolicyFilesError

TINY = vision_section(TinyPolicyConfig())


@pytest.mark.parametrize(
    ("change", "message"),
    [({"depth": None}, "depth"), ({"hidden_size": "64"}, "whole numbers"), ({"window_size": 20}, "no merged block")],
)
def test_a_configuration_without_sizes_is_refused_by_name(change, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": TINY | change}))
    with pytest.raises(PolicyFilesError, match=message):
        VisionSizes.of(read_vision_config(tmp_path))


def test_a_folder_without_a_vision_config_is_named(tmp_path):
    with pytest.raises(PolicyFilesError, match=r"config\.json: no configuration"):
        read_vision_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(PolicyFilesError, match="vision_config"):
        read_vision_config(tmp_path)
