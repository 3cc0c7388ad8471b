"""A run goes on only from a checkpoint of its own, which its learner ranks can read."""

from dataclasses import replace
from pathlib import Path

import pytest

from rl.checkpoint.store import CheckpointStore
from rl.config.errors import ConfigError
from rl.config.file import load_config, to_dict, to_yaml
from rl.memory_plan.plan import recomputing
from rl.run.resume import checkpoint_of, config_changes, find_checkpoint
from rl.trajectory import RunState
from tests.rl.learner.learner_files import save_learner

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
CONFIG = load_config([QUICKSTART])


@pytest.fixture
def store(tmp_path):
    store = CheckpointStore(tmp_path)
    for step in (5, 10):
        draft = store.begin(step)
        save_learner(draft)
        store.commit(draft, RunState(step, step, seed=0), to_yaml(CONFIG))
    return store


def test_auto_takes_the_newest_whole_one_never_takes_none_a_path_takes_that_one(store):
    assert find_checkpoint(CONFIG, store).state.step == 10
    assert find_checkpoint(replace(CONFIG, resume="never"), store) is None
    older = store.folder / "step_00000005"
    assert find_checkpoint(replace(CONFIG, resume=str(older)), store).state.step == 5


def test_a_checkpoint_of_0_3_0_is_resumed_though_its_configuration_has_old_keys(tmp_path):
    store = CheckpointStore(tmp_path)
    draft = store.begin(5)
    save_learner(draft)
    old = to_yaml(CONFIG).replace("  coarse:\n", "  v0:\n").replace("frame_cache_bytes:", "store_bytes:")
    assert "v0:" in old and "store_bytes:" in old
    store.commit(draft, RunState(5, 5, seed=0), old)
    said = []
    assert find_checkpoint(CONFIG, store, say=said.append).state.step == 5
    assert said == []  # no setting differs
    changed = replace(CONFIG, video=replace(CONFIG.video, coarse=replace(CONFIG.video.coarse, fps=2.0)))
    with pytest.raises(ConfigError, match=r"other settings: video\.coarse\.fps: 1\.0 -> 2\.0"):
        find_checkpoint(changed, store)


@pytest.mark.parametrize(
    ("now", "told"), [("auto", []), ("none", []), ("all", ["  learner.activation_checkpointing: 'none' -> 'all'"])]
)
def test_what_auto_recomputed_before_is_no_setting_that_differs(tmp_path, now, told):
    store = CheckpointStore(tmp_path)
    draft = store.begin(5)
    save_learner(draft)
    store.commit(draft, RunState(5, 5, seed=0), to_yaml(recomputing(CONFIG, "none")))
    said = []
    find_checkpoint(recomputing(CONFIG, now), store, say=said.append)
    assert said[1:] == told


def test_a_run_says_what_it_passes_over_and_why(store):
    (store.folder / "step_00000010" / "state.json").write_text("{}")
    said = []
    assert find_checkpoint(CONFIG, store, say=said.append).state.step == 5
    (line,) = said
    assert line.startswith("checkpoint passed over: ") and "step_00000010/state.json: 2 bytes" in line


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_at_zero_unless_told(store):
    for step in ("step_00000005", "step_00000010"):
        (store.folder / step / "manifest.json").unlink()
    said = []
    with pytest.raises(ConfigError, match=r"resume: 2 checkpoints are there .*none is whole.*resume=never") as refusal:
        find_checkpoint(CONFIG, store, say=said.append)
    assert len(str(refusal.value).splitlines()) == 1 and len(said) == 2
    assert find_checkpoint(replace(CONFIG, resume="never"), store) is None


def test_a_run_killed_in_its_first_save_starts_afresh(tmp_path):
    store = CheckpointStore(tmp_path)
    (store.begin(5) / "rank_0.safetensors").write_bytes(b"half")
    assert find_checkpoint(CONFIG, store) is None


def test_a_run_with_other_rewards_is_another_run(store):
    mine = load_config([QUICKSTART], ["rewards.answer.weight=0.5"])
    with pytest.raises(ConfigError, match=r"rewards\.answer\.weight: 0\.9 -> 0\.5.*name="):
        find_checkpoint(mine, store)


def test_a_run_may_become_longer_and_move_elsewhere(store):
    changes = ["trainer.steps=500", "placement.colocate=false", "rollout.call_timeout_s=9", "logging.wandb=offline"]
    longer = load_config([QUICKSTART], changes)
    assert find_checkpoint(longer, store).state.step == 10


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_run_may_go_on_with_other_ranks_another_stage_and_other_engines(store, stage):
    changes = ["learner.num_ranks=4", f"learner.zero_stage={stage}", "rollout.num_workers=3", "scoring.num_workers=2"]
    assert find_checkpoint(load_config([QUICKSTART], changes), store).state.step == 10


def test_a_learner_state_that_these_ranks_cannot_read_is_refused_before_anything_starts(tmp_path):
    store = CheckpointStore(tmp_path)
    draft = store.begin(5)
    save_learner(draft, ranks=2, described=False)
    store.commit(draft, RunState(5, 5, seed=0), to_yaml(CONFIG))
    assert find_checkpoint(CONFIG, store).state.step == 5  # two ranks at ZeRO 1, too
    one = load_config([QUICKSTART], ["learner.num_ranks=1"])
    with pytest.raises(ConfigError, match=r"resume: .*rank_0\.safetensors: .*learner\.num_ranks=2 \(now 1\)"):
        find_checkpoint(one, store)


def test_a_checkpoint_without_all_of_its_ranks_is_refused_before_anything_starts(tmp_path):
    store = CheckpointStore(tmp_path)
    draft = store.begin(5)
    save_learner(draft, ranks=2)
    (draft / "rank_1.safetensors").unlink()
    store.commit(draft, RunState(5, 5, seed=0), to_yaml(CONFIG))
    with pytest.raises(ConfigError, match=r"resume: .*written by 2 ranks, but 1 files lie here"):
        find_checkpoint(CONFIG, store)


def said_on_resume(store, *changes):
    lines = []
    find_checkpoint(load_config([QUICKSTART], changes), store, say=lines.append)
    return lines


def test_every_difference_is_said_and_which_of_them_change_the_meaning(store):
    assert said_on_resume(store) == []
    assert said_on_resume(store, "trainer.steps=500", "learner.micro_batch=4") == [
        "settings that differ from those of step_00000010:",
        "  learner.micro_batch: 16 -> 4",
        "  trainer.steps: 100 -> 500",
    ]


def test_another_meaning_is_refused_after_it_was_said_in_full_and_allowed_when_told(store):
    changes = ["seed=1", "trainer.steps=500", "rewards.brief.fn=output_format", "learner.optimizer.lr=0.1"]
    lines = []
    with pytest.raises(ConfigError, match=r"resume_changed=true .* a new experiment from that checkpoint"):
        find_checkpoint(load_config([QUICKSTART], changes), store, say=lines.append)
    assert lines == [
        "settings that differ from those of step_00000010:",
        "  learner.optimizer.lr: 0.0002 -> 0.1  (changes the meaning of the run)",
        "  rewards.brief: (none) -> {'args': {}, 'calls': '', 'fn': 'output_format', 'segment': 'reasoning',"
        " 'tool': '', 'weight': 1.0}  (changes the meaning of the run)",
        "  seed: 0 -> 1  (changes the meaning of the run)",
        "  trainer.steps: 100 -> 500",
    ]
    told = said_on_resume(store, *changes, "resume_changed=true")
    assert told[0] == lines[0] and set(lines) < set(told)
    assert told[-1] == "resume_changed=true: from here on this is a new experiment"


def without(settings, *path):
    """Settings as a version without this key wrote them."""
    key, *rest = path
    return {k: without(v, *rest) if rest and k == key else v for k, v in settings.items() if rest or k != key}


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("algorithm.loss.tis_cap", "2.0", []),  # what the version did that had no choice
        ("algorithm.loss.tis_cap", "3.0", ["algorithm.loss.tis_cap: 2.0 -> 3.0"]),
        ("parity.warn_nat", "1.0", []),  # changes no meaning
        ("rewards.answer.segment", "reasoning", []),
        ("scoring", None, []),  # a whole section
    ],
)
def test_keys_the_old_version_did_not_know_count_as_their_defaults(key, value, told):
    old = without(to_dict(CONFIG), *key.split("."))
    new = to_dict(load_config([QUICKSTART], [f"{key}={value}"] if value else []))
    assert [str(change) for change in config_changes(old, new)] == told


def test_a_value_of_any_size_is_told_on_one_line():
    old, bomb = to_dict(CONFIG), ["x" * 10**6]
    for _ in range(30):
        bomb = [bomb] * 30  # 30^30 values, all the same ones
    old["name"], old["policy"]["path"] = bomb, "p" * 10**6
    assert max(len(str(change)) for change in config_changes(old, to_dict(CONFIG))) < 1000


def test_keys_this_version_does_not_know_any_more_are_said():
    old = to_dict(CONFIG)
    old["algorithm"]["exploration"] = 0.5
    (change,) = config_changes(old, to_dict(CONFIG))
    assert str(change) == "algorithm.exploration: 0.5 -> (none)" and change.changes_meaning


@pytest.mark.parametrize("text", ["", "- a\n", "a: [unclosed", "rewards: 3\nseed: [1]\n"])
def test_a_checkpoint_whose_settings_cannot_be_read_or_are_nonsense_is_refused(tmp_path, text):
    store = CheckpointStore(tmp_path)
    store.commit(store.begin(5), RunState(5, 5, seed=0), text)
    with pytest.raises(ConfigError, match=r"resume: .*step_00000005"):
        find_checkpoint(CONFIG, store)


def test_a_policy_is_taken_from_a_run_newest_or_best_or_from_one_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path, keep=1, best_metric="held_out/accuracy")
    for step, value in ((5, 0.9), (10, 0.1)):
        store.commit(store.begin(step), RunState(step, step, seed=0), to_yaml(CONFIG), value)
    assert checkpoint_of(tmp_path).state.step == 10
    assert checkpoint_of(tmp_path, best=True).state.step == 5
    assert checkpoint_of(store.folder / "step_00000005").state.step == 5


def test_where_no_policy_can_be_taken_it_is_said_why(store, tmp_path):
    with pytest.raises(ConfigError, match="no checkpoint is known as the best"):
        checkpoint_of(tmp_path, best=True)
    with pytest.raises(ConfigError, match="neither a run nor a checkpoint"):
        checkpoint_of(tmp_path / "nowhere")
    (store.folder / "step_00000010" / "state.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"state\.json: 2 bytes"):
        checkpoint_of(store.folder / "step_00000010")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match="no valid checkpoint in it"):
        checkpoint_of(tmp_path / "empty")


def test_a_path_that_is_no_checkpoint_is_refused_by_name(store, tmp_path):
    with pytest.raises(ConfigError, match=r"resume: .*nowhere"):
        find_checkpoint(replace(CONFIG, resume=str(tmp_path / "nowhere")), store)
