"""One tiny policy of ours and its stock twin (same seed, same weights), built once."""

import numpy as np
import pytest

from rl.config.policy import ScenesConfig, TinyPolicyConfig
from rl.policy.families import FAMILIES
from rl.policy.processor import Processor
from rl.policy.tiny import build_tiny_policy

SIZES = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "vocab_size": 600, "vision_layers": 3}
SCENES = ScenesConfig()


@pytest.fixture(scope="session", params=FAMILIES)
def tiny(request):
    """Sizes of the tiny policy: every test of the policy runs once for each family."""
    return TinyPolicyConfig(family=request.param, **SIZES)


@pytest.fixture(scope="session")
def family(tiny):
    return FAMILIES[tiny.family]


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory, tiny):
    return build_tiny_policy(tiny, SCENES, tmp_path_factory.mktemp("policy") / "ours", seed=7)


@pytest.fixture(scope="session")
def stock_dir(tmp_path_factory, tiny):
    return build_tiny_policy(tiny, SCENES, tmp_path_factory.mktemp("policy") / "stock", seed=7, stock=True)


@pytest.fixture(scope="session")
def processor(tiny_dir):
    return Processor.from_pretrained(tiny_dir, SCENES)


@pytest.fixture
def random_pixels(processor):
    """Noise of T frames, different in every frame, so many tokens high and wide."""
    unit = processor.geometry.unit
    return lambda num_frames, rows=2, columns=3, seed=0: np.random.default_rng(seed).integers(
        0, 256, (num_frames, rows * unit, columns * unit, 3), dtype=np.uint8
    )
