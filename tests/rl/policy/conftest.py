"""One tiny policy of ours and its stock twin (same seed, same weights), built once."""

import numpy as np
import pytest

from rl.config.policy import ScenesConfig, TinyPolicyConfig
from rl.policy.processor import Processor
from rl.policy.tiny import build_tiny_policy

TINY = TinyPolicyConfig(hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1, vocab_size=600)
SCENES = ScenesConfig()


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory):
    return build_tiny_policy(TINY, SCENES, tmp_path_factory.mktemp("policy") / "ours", seed=7)


@pytest.fixture(scope="session")
def stock_dir(tmp_path_factory):
    return build_tiny_policy(TINY, SCENES, tmp_path_factory.mktemp("policy") / "stock", seed=7, stock=True)


@pytest.fixture(scope="session")
def processor(tiny_dir):
    return Processor.from_pretrained(tiny_dir, SCENES)


@pytest.fixture
def random_pixels():
    """Noise of T frames, different in every frame."""
    return lambda num_frames, height=56, width=84, seed=0: np.random.default_rng(seed).integers(
        0, 256, (num_frames, height, width, 3), dtype=np.uint8
    )
