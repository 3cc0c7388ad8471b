"""What is recomputed is decided once for a run, and stays where it can when the run goes on elsewhere."""

from dataclasses import replace
from pathlib import Path

import pytest

from rl.checkpoint.checkpoint import Checkpoint
from rl.config.file import load_config, to_yaml
from rl.memory_plan.plan import recomputing
from rl.policy.sizes import BY_NAME
from rl.policy.stock.hub_files import model_config
from rl.policy.structure import read_structure
from rl.run import recomputation
from rl.run.recomputation import with_recomputation
from rl.trajectory import RunState

CONFIGS = Path(__file__).parents[3] / "configs"
CHOSEN = "activations recomputed: {} (learner.activation_checkpointing=auto)"
SHORT = ("rollout.engine.max_model_len=8192", "learner.micro_tokens=8192", "video.coarse.max_visual_tokens=4096")


@pytest.fixture
def decide(monkeypatch):
    """What a run of the 3B with a trained tower recomputes on GPUs of so many GiB, and what it says."""
    shapes = read_structure(model_config(BY_NAME["qwen2_5_vl", "3b"]), "config.json", init_frames=6)
    monkeypatch.setattr(recomputation, "structure_of", lambda *_: shapes)
    config = load_config([CONFIGS / "sd_grpo_qwen2_5_vl_3b.yaml"], ["learner.freeze_vision=false", *SHORT])

    def of(choice, gpu_gib, before=None):
        placed = replace(config.placement, gpu_memory_gib=gpu_gib)
        told = recomputing(replace(config, placement=placed), choice)
        found = before and Checkpoint(
            Path("step_00000005"),
            RunState(5, 5, seed=0),
            before if "\n" in before else to_yaml(recomputing(told, before)),
        )
        said = []
        decided = with_recomputation(told, Path("policy"), found, said.append)
        assert recomputing(decided, choice) == told  # nothing else has changed
        return decided.learner.activation_checkpointing, said

    return of


@pytest.mark.parametrize(
    ("gpu_gib", "before", "decided", "said"),
    [
        (80, None, "vision", CHOSEN.format("vision")),
        (141, None, "none", CHOSEN.format("none")),
        (141, "vision", "vision", None),  # elsewhere there would be room, but the run has begun so
        (80, "language", "language", None),
        (40, "vision", "all", "activations recomputed: all; vision, as before step_00000005, does not fit these GPUs"),
        (141, "learner:\n  activation_checkpointing: true\n", "all", None),  # of 0.3.0
        (141, "learner:\n  zero_stage: 1\n", "none", CHOSEN.format("none")),
    ],
)
def test_auto_is_what_the_run_did_before_if_that_fits_and_else_what_fits(decide, gpu_gib, before, decided, said):
    assert decide("auto", gpu_gib, before) == (decided, [said] if said else [])


@pytest.mark.parametrize("before", [None, "vision"])
def test_what_is_given_stands(decide, before):
    assert decide("all", 141, before) == ("all", [])
    assert decide("none", 40, before) == ("none", [])
