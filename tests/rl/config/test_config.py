"""Configuration: strict keys, ranges with remedies, overrides on top."""

import re
from pathlib import Path

import pytest

from rl.config.errors import ConfigError
from rl.config.file import load_config, to_yaml
from rl.config.keys import known_keys
from rl.config.run import anchored, weight_transport

CONFIGS = Path(__file__).parents[3] / "configs"
QUICKSTART = CONFIGS / "quickstart.yaml"


def load(*overrides):
    return load_config([QUICKSTART], overrides)


def test_overrides_win_over_files_and_later_files_over_earlier_ones():
    config = load_config([QUICKSTART, CONFIGS / "grpo_baseline.yaml"], ["trainer.steps=7"])
    assert (config.name, config.trainer.steps) == ("grpo_baseline", 7)
    assert config.rollout.group_size == 8


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.groupsize=4", "did you mean 'rollout.group_size'"),
        ("lerner.num_ranks=1", "unknown key 'lerner'; did you mean 'learner'"),
        ("rewards.answer.wieght=1", r"did you mean 'rewards\.answer\.weight'"),
        ("rollout.group_size=1", "must be >= 2 for a group baseline, got 1"),
        ("rollout.top_p=0.9", "bias importance ratios"),
        ("rollout.group_size=many", "'rollout.group_size'"),
        ("algorithm.advantage.method=ppo", "one of gdpo, grpo, sd_grpo, got 'ppo'"),
        ("rollout.tasks_per_step=7", "multiple of learner.num_ranks"),
        ("trainer.steps", "key=value"),
        ("=3", "key=value"),
        ("video.coarse.min_frames=9", "video.coarse.max_frames"),
        ("rollout.num_workers=0", "rollout.num_workers must be >= 1, got 0"),
        ("rollout.call_timeout_s=0", "rollout.call_timeout_s must be > 0"),
        ("rollout.max_new_tokens=0", "rollout.max_new_tokens must be >= 1"),
        ("retrieval.min_fps=11", r"min_fps must be between 0 and retrieval.max_fps \(10\), got 11"),
        ("cold_start.looks=2", "cold_start.looks=2 teaches more looks than retrieval.max_calls=1 grants"),
        ("cold_start.looks=0", "cold_start.looks must be >= 1, got 0"),
        ("rewards.window.calls=median", "rewards.*.calls must be one of"),
        ("rewards.answer.calls=sum", "is of sampling terms"),
        ("scoring.num_workers=0", "scoring.num_workers must be >= 1"),
        ("scoring.timeout_s=0", "scoring.timeout_s must be > 0"),
        ("scoring.max_failed_share=1.5", r"max_failed_share must be in \[0, 1\], got 1.5"),
        ("learner.updates_per_step=0", "learner.updates_per_step must be >= 1"),
        ("learner.optimizer.lr=0", "learner.optimizer.lr must be > 0"),
        ("learner.optimizer.betas=[0.9]", r"two numbers in \[0, 1\), got \[0.9\]"),
        ("learner.optimizer.betas=[0.9,1.0]", r"two numbers in \[0, 1\)"),
        ("video.decode_workers=-1", "video.decode_workers must be >= 0"),
        ("video.decode_memory_mib=100", "video.decode_memory_mib must be between 256"),
        ("algorithm.loss.constant_tokens=0", "constant_tokens must be >= 1"),
        ("trainer.save_every=-3", "trainer.save_every must be >= 0, got -3"),
        ("trainer.eval_every=-1", "trainer.eval_every must be >= 0"),
        ("trainer.best_metric=accuracy", "must be empty or start with held_out/ or -held_out/, got 'accuracy'"),
        ("trainer.best_metric=held_out/acuracy", "no metric held_out/acuracy; there are held_out/reward_sampling"),
        ("trainer.best_metric=held_out/calls", "no metric held_out/calls; since 0.4.0 it is held_out/granted_calls"),
        ("trainer.best_metric=-held_out/term/windo", "no metric held_out/term/windo"),
        ("evaluation.limit=-1", "evaluation.limit must be >= 0, got -1"),
        ("evaluation.reading=loose", "evaluation.reading must be one of lenient, strict, got"),
        ("evaluation.in_flight=0", "evaluation.in_flight must be >= 1, got 0"),
        ("evaluation.benchmark=nextgqa", r"evaluation.benchmark is 'nextgqa': where do its annotations lie\?"),
        ("evaluation.name=../other", "evaluation.name must be letters"),
        ("trainer.eval_tasks=-1", "trainer.eval_tasks must be >= 0"),
        ("cold_start.steps=0", "cold_start.enabled=false skips it"),
        ("cold_start.batch_size=0", "cold_start.batch_size must be >= 1"),
        ("cold_start.lr=0", "cold_start.lr must be > 0"),
        ("policy.scenes.init_frames=5", "must be even and >= 2"),
        ("policy.scenes.init_frames=0", "must be even and >= 2"),
        ("rollout.engine.max_model_len=5000", r"policy.tiny.max_position_embeddings \(4096\)"),
        ("rollout.engine.tensor_parallel_size=2", r"placement\.rollout_gpus >= 2, got 0"),
        ("rollout.engine.tensor_parallel_size=0", "tensor_parallel_size must be >= 1"),
        ("data.train.format=dm_rl", r"set cold_start.traces: \{format: dm_rl, path: ...\}"),
        ("name=../elsewhere", "it names a folder in output_dir"),
        ("name=..", "it names a folder in output_dir"),
        ("name=''", "it names a folder in output_dir"),
    ],
)
def test_a_bad_override_is_one_clear_line(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(override)
    assert "\n" not in str(caught.value)


def test_the_best_checkpoint_can_be_chosen_by_any_held_out_metric_or_none():
    for chosen in ("''", "held_out/accuracy", "-held_out/frames", "held_out/term/window"):
        assert load(f"trainer.best_metric={chosen}").trainer.best_metric == chosen.strip("'")


def test_bf16_without_zero_is_refused_because_deepspeed_gets_it_wrong():
    with pytest.raises(ConfigError, match="zero_stage=1"):
        load("policy.dtype=bfloat16", "learner.zero_stage=0")


def test_an_engine_over_several_gpus_needs_them():
    several = "rollout.engine.tensor_parallel_size=2"
    with pytest.raises(ConfigError, match=r"placement\.rollout_gpus >= 2, got 1"):
        load(several, "placement.rollout_gpus=1")
    assert load(several, "placement.rollout_gpus=2")


APART, SHARED = (
    ("placement.rollout_gpus=1", "placement.learner_gpus=1"),
    (
        *("placement.rollout_gpus=0.5", "placement.learner_gpus=0.5", "rollout.num_workers=1"),
        "rollout.engine.gpu_memory_utilization=0.4",
    ),
)
TRANSPORTS = {  # how workers are placed -> what auto chooses, and what may be set
    (): ("object_store", {"object_store", "gloo", "ipc"}),
    APART: ("nccl", {"object_store", "nccl"}),
    SHARED: ("ipc", {"object_store", "ipc"}),
    ("placement.rollout_gpus=1",): ("object_store", {"object_store"}),
}


@pytest.mark.parametrize(("placed", "expected"), TRANSPORTS.items())
def test_weights_travel_as_workers_are_placed(placed, expected):
    chosen, possible = expected
    assert weight_transport(load(*placed)) == chosen
    for transport in ("object_store", "gloo", "ipc", "nccl"):
        asked = (*placed, f"weight_sync.transport={transport}")
        if transport in possible:
            assert weight_transport(load(*asked)) == transport
        else:
            with pytest.raises(ConfigError, match=rf"weight_sync\.transport={transport} cannot be used with placement"):
                load(*asked)
    with pytest.raises(ConfigError, match=r"weight_sync\.transport must be one of auto, gloo, ipc"):
        load("weight_sync.transport=rdma")


def test_a_given_policy_brings_its_own_longest_context():
    assert load("rollout.engine.max_model_len=5000", "policy.path=models/mine")


def test_columns_of_a_table_are_names_kept_as_they_stand(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "rewards: {answer: {fn: answer}}\n"
        "data: {train: {format: csv, path: t.csv, columns: {prompt: on, video: 1.10, answer: 007}}}\n"
    )
    columns = load_config([tmp_path / "run.yaml"], ["data.train.columns.fps=rate"]).data.train.columns
    assert columns == {"prompt": "on", "video": "1.10", "answer": "007", "fps": "rate"}
    for override in ("data.train.columns=[a]", "data.train.columns.prompt.a=b", "data.train.columns.prompt="):
        with pytest.raises(ConfigError, match=r"data\.train\.columns"):
            load_config([tmp_path / "run.yaml"], [override])


def test_a_missing_file_and_a_file_that_is_no_yaml_are_named(tmp_path):
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_config([tmp_path / "absent.yaml"])
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1, 2")
    with pytest.raises(ConfigError, match=r"broken\.yaml: not readable as YAML"):
        load_config([broken])
    listing = tmp_path / "list.yaml"
    listing.write_text("- 1\n- 2\n")
    with pytest.raises(ConfigError, match="keys and values"):
        load_config([listing])


def test_yaml_object_tags_build_nothing(tmp_path):
    hostile = tmp_path / "hostile.yaml"
    hostile.write_text("name: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match="not readable as YAML"):
        load_config([hostile])


def test_the_resolved_configuration_loads_back_to_the_same(tmp_path):
    config = load("rewards.mine.fn=answer", "rewards.mine.args.strict=true")
    saved = tmp_path / "resolved.yaml"
    saved.write_text(to_yaml(config))
    assert load_config([saved]) == config


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_configuration_we_ship_is_valid(path):
    over = re.match(r"# Overlay(?: of configs/(\S+))?:", path.read_text())  # of the quickstart, if it names none
    below = [CONFIGS / (over[1] or QUICKSTART.name)] if over else []
    assert load_config([*below, path])


def test_every_knob_has_a_default_so_that_a_run_needs_only_rewards(tmp_path):
    smallest = tmp_path / "smallest.yaml"
    smallest.write_text("rewards: {answer: {fn: answer}}\n")
    assert load_config([smallest]).trainer.steps > 0
    assert "rewards.*.fn" in known_keys()


def test_relative_folders_can_be_anchored_and_absolute_ones_stay(tmp_path):
    config = anchored(load("output_dir=runs", "cache_dir=/elsewhere"), tmp_path)
    assert config.output_dir == str(tmp_path / "runs") and config.cache_dir == "/elsewhere"


@pytest.mark.parametrize(
    ("lora", "told"),
    [
        ("{rank: -1}", r"policy\.lora\.rank must be >= 0"),
        ("{rank: 4, targets: []}", r"policy\.lora\.targets is empty; policy\.lora\.rank=0 turns LoRA off"),
        ("{rank: 4, targets: [query]}", r"policy\.lora\.targets must be one of down_proj, .*visual\.qkv.*got 'query'"),
        ("{rank: 4, full: [norm]}", r"policy\.lora\.full must be one of embed_tokens, lm_head, merger, got 'norm'"),
        ("{rank: 4, targets: [visual.qkv]}", r"freeze_vision=true, .*train the tower \(visual\.qkv\): leave them out"),
    ],
)
def test_updates_that_cannot_be_trained_are_refused(lora, told, tmp_path):
    overlay = tmp_path / "lora.yaml"
    overlay.write_text(f"policy: {{lora: {lora}}}\nlearner: {{freeze_vision: true}}\n")
    with pytest.raises(ConfigError, match=told):
        load_config([QUICKSTART, overlay])
