"""Tiny policies of both families whose log-probs spread, and exports of them."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from envs.initial_observation import CoarseFrameRules
from envs.prompts import PromptFormat
from envs.tools.rules import RetrievalRules
from rl.config.policy import ScenesConfig, TinyPolicyConfig
from rl.policy.families import FAMILIES
from rl.policy.tiny import build_tiny_policy

SCENES = ScenesConfig()
FORM = PromptFormat(system="Watch.", instructions="Call <span>a - b</span><fps>f</fps> or give an <answer></answer>.")
EPISODE = {
    "coarse": asdict(CoarseFrameRules(max_pixels=64 * 96)),
    "retrieval": asdict(RetrievalRules(max_frames=6, max_pixels=64 * 96)),
    "prompt": asdict(FORM),
}
SPREAD = 20  # times the tiny policies' own head, whose log-probs are all alike
TINY = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "vocab_size": 600}


@pytest.fixture(scope="session", params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="session")
def policy(family, tmp_path_factory):
    return make_policy(family, tmp_path_factory.mktemp("policy") / "own")


def make_policy(family, folder, *, tied=False):
    """A policy of ours with random weights; a tied one scores with its embedding."""
    build_tiny_policy(TinyPolicyConfig(family=family.model_type, **TINY), SCENES, folder, seed=5)
    weights = load_file(folder / "model.safetensors")
    if tied:
        del weights["lm_head.weight"]
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    else:
        weights["lm_head.weight"] *= SPREAD
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def clip():
    """Seven frames of 60 x 90 pixels, two scenes, and their times."""
    rng = np.random.default_rng(3)
    first, second = rng.integers(0, 256, (2, 60, 90, 3), dtype=np.uint8)
    return np.stack([first, first, first, second, second, second, second]), [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
