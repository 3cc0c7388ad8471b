"""What config.json of a folder of ours is read as: its family's stock configuration, under a `model_type` of its own.

Stock classes would leave our patch kernel out and fill in a random one, with a warning. Two names that they do not know
make them refuse: the `model_type`, for Auto classes, and `vision_config.hidden_act`, where a stock class is called by
name. Folders of version 0.3.0 have the stock names, and are told by `vision_config.flexivideo`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig, Qwen2_5_VLConfig, Qwen3VLConfig

from rl.policy.families import QWEN2_5_VL, QWEN3_VL, Family, family_in, is_ours, read_config

REFUSED = "FlexiVideo (use AutoModelForImageTextToText with trust_remote_code=True): "  # what the error then says
OF_THE_FOLDER = ("model_type", "auto_map")  # keys of config.json that say who reads it, and are no parameter


class SceneConfig(PreTrainedConfig):
    """Stands before a family's stock configuration: writes and reads `hidden_act` so that stock classes refuse it."""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.vision_config.hidden_act = self.vision_config.hidden_act.removeprefix(REFUSED)

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds."""
        content = super().to_dict()
        content["vision_config"]["hidden_act"] = REFUSED + self.vision_config.hidden_act
        return content


class FlexiVideoQwen2_5_VLConfig(SceneConfig, Qwen2_5_VLConfig):
    """Qwen2.5-VL's configuration, with `vision_config.flexivideo`."""

    model_type = QWEN2_5_VL.own_model_type


class FlexiVideoQwen3VLConfig(SceneConfig, Qwen3VLConfig):
    """Qwen3-VL's configuration, with `vision_config.flexivideo`."""

    model_type = QWEN3_VL.own_model_type


CLASSES: dict[str, type[PreTrainedConfig]] = {
    QWEN2_5_VL.model_type: FlexiVideoQwen2_5_VLConfig,
    QWEN3_VL.model_type: FlexiVideoQwen3VLConfig,
}


def configuration_class(family: Family) -> type[PreTrainedConfig]:
    """What a family's policies of ours are configured by."""
    return CLASSES[family.model_type]


def read_configuration(folder: str | Path) -> PreTrainedConfig:
    """A folder's configuration, stock or ours. Code that the folder names is neither run nor remembered.

    Raises:
        PolicyFilesError: no readable config.json, or a family that cannot be trained here.
    """
    path = Path(folder) / "config.json"
    found = read_config(path)
    family = family_in(found, path)
    return own_configuration(found, family) if is_ours(found) else AutoConfig.from_pretrained(folder)


def own_configuration(found: dict[str, Any], family: Family) -> PreTrainedConfig:
    """The configuration of a policy of ours, of a dictionary such as config.json holds."""
    return configuration_class(family).from_dict({k: v for k, v in found.items() if k not in OF_THE_FOLDER})


def register() -> None:
    """Make the model types of ours known to transformers' Auto classes in this process."""
    for own in CLASSES.values():
        AutoConfig.register(own.model_type, own, exist_ok=True)
