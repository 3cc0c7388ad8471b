"""The memory plan in `dynframe check`: what it is made from, and what it says where the hardware is too small."""

import json

import pytest
from rich.console import Console

from rl.config.errors import ConfigError
from rl.config.file import load_config
from rl.memory_plan.record import GIB, GivenUp, Item, MemoryPlan, Place
from rl.policy.sizes import BY_NAME
from rl.policy.stock.hub_files import model_config
from rl.run.preflight import memory
from rl.run.preflight.findings import Level
from rl.run.preflight.memory import check_heads, check_plan, hardware_of, plan_memory, planned_structure, print_plan
from tests.hub_cache import NAME, put_in_cache

GPUS = ("placement.rollout_gpus=1", "placement.learner_gpus=1", "policy.dtype=bfloat16")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A configuration, on a machine without GPUs that has 8 GiB."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(memory, "available_bytes", lambda: 8 * GIB)
    monkeypatch.setattr(memory, "found_gpu_gib", lambda: 0.0)
    monkeypatch.setattr(memory, "DRIVER", tmp_path / "nvidiactl")
    smallest = tmp_path / "run.yaml"
    smallest.write_text("rewards: {answer: {fn: answer}}\n")
    return lambda *overrides: load_config([smallest], list(overrides))


def findings_of(config):
    return {finding.subject: finding for finding in check_plan(config, plan_memory(config))}


def test_shapes_are_those_of_the_folder_or_of_the_published_size_that_it_is_named_after(run, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model_config(BY_NAME["qwen3_vl", "4b"])))
    mine, assumed = planned_structure(run(f"policy.path={folder}"))
    assert (mine.language.hidden, assumed) == (2560, "")
    named, assumed = planned_structure(run("policy.path=models/Qwen3-VL-8B-Instruct"))
    assert (named.language.hidden, assumed) == (4096, "Qwen/Qwen3-VL-8B-Instruct")
    assert planned_structure(run("policy.path=models/other")) is None
    (folder / "config.json").write_text('{"model_type": "qwen3_vl", "vision_config": {}}')
    assert planned_structure(run(f"policy.path={folder}")) is None


def test_shapes_of_a_repository_of_any_name_are_known_once_it_is_in_the_hubs_cache(run, tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model_config(BY_NAME["qwen3_vl", "4b"])))
    for name in ("tokenizer.json", "model.safetensors"):
        (folder / name).write_bytes(b"")  # not looked at
    assert planned_structure(run(f"policy.path={NAME}")) is None
    put_in_cache(folder, tmp_path / "hub", monkeypatch)
    found, assumed = planned_structure(run(f"policy.path={NAME}"))
    assert (found.language.hidden, assumed) == (2560, "")


def test_a_gpu_is_named_by_key_and_found_else(run, monkeypatch):
    assert hardware_of(run(*GPUS, "placement.gpu=a100-40gb")).gpu_gib == 40
    assert hardware_of(run(*GPUS, "placement.gpu=a100-40gb", "placement.gpu_memory_gib=16")).gpu_gib == 16
    monkeypatch.setattr(memory, "found_gpu_gib", lambda: 80.0)
    assert hardware_of(run(*GPUS)).gpu_gib == 80
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert hardware_of(run(*GPUS)).gpu_gib == 0  # those of this machine say nothing of the cluster's
    assert hardware_of(run(*GPUS, "placement.gpu=h100-80gb")).gpu_gib == 79.6


def test_what_fits_says_how_much_of_what_and_names_the_largest(run):
    (finding,) = findings_of(run()).values()
    assert (finding.level, finding.subject) == (Level.OK, "memory, the machine")
    assert finding.detail.endswith(" of 8.0 GiB (free here); largest: rewards, driver and Ray 1.2 GiB")


def test_a_policy_too_large_for_a_gpu_is_refused_with_the_three_keys_that_help_most(run):
    keys = ("policy.path=models/Qwen2.5-VL-7B-Instruct", "placement.gpu=a100-40gb", "learner.num_ranks=4")
    found = findings_of(run(*GPUS, *keys, "learner.micro_batch=1"))
    refused = found["memory, 4 x GPU with 1 learner rank"]
    assert refused.level is Level.FAILED
    advice = refused.detail.partition(" GiB: ")[2].split("; ")
    assert len(advice) == 3
    assert any(setting.startswith("learner.zero_stage=3 saves ") for setting in advice)


def test_ranks_that_share_a_sequence_need_heads_that_can_be_dealt(run):
    keys = ("learner.num_ranks=3", "rollout.tasks_per_step=12", "learner.sequence_parallel=3")
    (finding,) = check_heads(run(*keys))
    assert check_heads(run()) == [] and finding.subject == "attention heads"
    assert finding.level is Level.FAILED
    assert finding.detail.startswith("learner.sequence_parallel=3 does not divide the policy's 4 attention heads")


def test_hardware_that_nobody_named_is_a_note_with_the_key(run):
    found = findings_of(run(*GPUS, "policy.path=models/Qwen3-VL-2B-Instruct"))
    notes = {subject: finding.detail for subject, finding in found.items() if finding.level is Level.NOTE}
    assert notes["memory, GPU with 1 engine"].endswith("not compared with anything: placement.gpu says what there is")
    assert "placement.node_memory_gib says" in notes["memory, the machine"]


def test_a_policy_of_unknown_shapes_is_not_planned_but_what_is_too_little_for_any_is_refused(run, monkeypatch):
    (finding,) = findings_of(run("policy.path=models/other")).values()
    assert (finding.level, finding.detail) == (Level.NOTE, "not planned: it needs the policy's config.json")
    monkeypatch.setattr(memory, "available_bytes", lambda: GIB)
    assert findings_of(run("policy.path=models/other"))["memory, the machine"].level is Level.FAILED


def test_an_unknown_gpu_is_an_error_of_the_configuration(run):
    with pytest.raises(ConfigError, match=r"placement\.gpu: unknown 'h100'; known are"):
        plan_memory(run(*GPUS, "placement.gpu=h100"))


def test_the_table_shows_every_place_its_largest_item_first(run, capsys):
    plan = plan_memory(run(*GPUS, "policy.path=models/Qwen3-VL-4B-Instruct", "placement.gpu=h100-80gb"))
    print_plan(plan, Console(width=100))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "memory, with the shapes of Qwen/Qwen3-VL-4B-Instruct:"
    engine = lines.index(next(line for line in lines if line.startswith("GPU with 1 engine")))
    assert lines[engine].split()[-3:] == ["68.6", "of", "75.6"]  # with the link's buffers
    assert lines[engine + 1].split()[:3] == ["engine:", "KV", "cache"]
    assert sum(line.startswith(("GPU with 1 learner rank", "the machine")) for line in lines) == 2


@pytest.mark.parametrize(
    ("settings", "level", "told"),
    [
        (("placement.gpu=h200-141gb", "rollout.engine.max_model_len=4096"), Level.OK, "auto: none"),
        (("placement.gpu=h100-80gb", "learner.freeze_vision=true"), Level.OK, "auto: language"),
        (
            (),
            Level.NOTE,
            "auto: none, for nothing tells what a GPU holds: placement.gpu does, or placement.gpu_memory_gib",
        ),
        (("placement.gpu=h100-80gb", "learner.activation_checkpointing=all"), None, ""),
    ],
)
def test_what_auto_recomputes_is_told_with_the_plan(run, settings, level, told, capsys):
    keys = ("policy.path=models/Qwen3-VL-4B-Instruct", "rollout.engine.max_model_len=16384", "learner.micro_batch=1")
    ranks = ("learner.num_ranks=4", "learner.zero_stage=2")
    config = run(*GPUS, *keys, *ranks, *settings)
    found = findings_of(config).get("learner.activation_checkpointing")
    assert (found and found.level, found.detail if found else "") == (level, told)
    plan = plan_memory(config)
    print_plan(plan, Console(width=100))
    line = f"recomputed in the backward pass (learner.activation_checkpointing): {plan.recomputed}"
    assert (line in capsys.readouterr().out.splitlines()) is (plan.recomputed != "none")


def test_the_disk_for_checkpoints_is_asked_for_before_the_policy_is_there(run, tmp_path):
    assert memory.planned_parameters(run("policy.path=models/Qwen3-VL-4B-Instruct")) == pytest.approx(4.44e9, rel=0.01)
    assert memory.planned_parameters(run("policy.path=models/other")) == 0


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        (None, []),
        (
            GivenUp(states=False),
            ["stay on the GPU while engines sample; weights of sleeping engines are in main memory"],
        ),
        (GivenUp(weights=True), ["go to main memory while engines sample; weights of sleeping engines are dropped"]),
    ],
)
def test_what_is_given_up_in_turn_stands_below_the_plan(capsys, turns, said):
    place = Place("GPU", (Item("weights", 1.0 * GIB),), None)
    print_plan(MemoryPlan((place,), given_up=turns), Console(width=200))
    shown = capsys.readouterr().out
    assert ("in turn (placement.share_gpus): learners' masters" in shown) is bool(said)
    assert all(part in shown for part in said)
