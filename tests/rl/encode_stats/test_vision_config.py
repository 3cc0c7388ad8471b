"""Which vision tower a geometry's name stands for, and which cannot be used."""

import json

import pytest

from rl.config.policy import TinyPolicyConfig
from rl.encode_stats.vision_config import GEOMETRIES, named_geometry, read_geometry
from rl.policy.families import FAMILIES
from rl.policy.tiny import vision_section
from rl.policy.token_ids import PolicyFilesError


def write(folder, family, **change):
    vision = vision_section(TinyPolicyConfig(family=family)) | change
    (folder / "config.json").write_text(json.dumps({"model_type": family, "vision_config": vision}))


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("qwen2_5_vl", {"depth": None}, "depth"),
        ("qwen3_vl", {"hidden_size": "64"}, "whole numbers"),
        ("qwen2_5_vl", {"window_size": 20}, "no merged block"),
        ("qwen3_vl", {"deepstack_visual_indexes": None}, "not the vision_config of qwen3_vl"),
    ],
)
def test_a_configuration_without_sizes_is_refused_by_name(family, change, message, tmp_path):
    write(tmp_path, family, **change)
    with pytest.raises(PolicyFilesError, match=message):
        read_geometry(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folders_tower_is_its_familys(family, tmp_path):
    write(tmp_path, family)
    found = named_geometry(str(tmp_path))
    assert found.family is FAMILIES[family]
    assert (found.patch, found.merge) == ({"qwen2_5_vl": 14, "qwen3_vl": 16}[family], 2)


def test_a_folder_without_a_vision_config_is_named(tmp_path):
    with pytest.raises(PolicyFilesError, match=r"config\.json: cannot be read"):
        read_geometry(tmp_path)
    for content, message in (("[]", "holds no configuration"), ('{"model_type": "qwen3_vl"}', "with a vision_config")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(PolicyFilesError, match=rf"config\.json: .*{message}"):
            read_geometry(tmp_path)
    write(tmp_path, "qwen3_vl")
    text = (tmp_path / "config.json").read_text().replace('"qwen3_vl"', '"qwen3_vl_moe"')
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(PolicyFilesError, match="model_type 'qwen3_vl_moe' cannot be trained here"):
        read_geometry(tmp_path)


def test_every_name_is_a_tower_that_can_be_made():
    assert {named_geometry(name).family.model_type for name in GEOMETRIES} == set(FAMILIES)
