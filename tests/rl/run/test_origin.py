"""init_from: a new phase has the weights of an earlier run, whatever becomes of that, and says where they are from."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rl.checkpoint.store import CheckpointStore
from rl.config.errors import ConfigError
from rl.config.file import load_config, to_yaml
from rl.report.run_files import read_ancestry
from rl.run import origin
from rl.run.origin import ancestry, begun_from, keep_ancestry
from rl.run.writer import keep_config
from rl.trajectory import RunState


@pytest.fixture
def config(tmp_path):
    """A run called "second"."""
    return load_config(
        [],
        [
            *("name=second", "rewards.answer.fn=answer", "cold_start.enabled=false", "policy.path=some/hub-name"),
            *(f"output_dir={tmp_path}/runs", f"cache_dir={tmp_path}/cache"),
        ],
    )


def save(config, step, weights=b"w"):
    """A checkpoint whose policy has these weights."""
    run = Path(config.output_dir) / config.name
    store = CheckpointStore(run)
    draft = store.begin(step)
    (draft / "policy").mkdir()
    (draft / "policy" / "model.safetensors").write_bytes(weights)
    (draft / "policy" / "config.json").write_text("{}")
    keep_config(config, run)
    return store.commit(draft, RunState(step, step, 0), to_yaml(config)).folder


@pytest.fixture
def first(config):
    """The folder of a run called "first" with two checkpoints."""
    parent = replace(config, name="first")
    for step in (10, 20):
        save(parent, step, b"w%d" % step)
    return Path(config.output_dir) / "first"


def weights_of(config):
    return (Path(config.policy.path) / "model.safetensors").read_bytes()


def test_without_the_key_nothing_changes(config):
    assert begun_from(config) is config


@pytest.mark.parametrize(("given", "step"), [("", 20), ("checkpoints/step_00000010", 10), ("checkpoints/latest", 20)])
def test_a_run_or_a_checkpoint_gives_its_policy_and_nothing_else(config, first, given, step):
    begun = begun_from(replace(config, init_from=str(first / given)))
    assert weights_of(begun) == b"w%d" % step
    assert replace(begun, init_from="", policy=config.policy) == config
    assert Path(begun.policy.path).parent == Path(config.cache_dir)
    (told,) = ancestry(Path(begun.policy.path))
    assert (told.source, told.run, told.step) == (begun.init_from, "first", step)


def test_a_policys_folder_is_taken_as_it_is(config, tmp_path):
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "config.json").write_text("{}")
    begun = begun_from(replace(config, init_from=str(tmp_path / "exported")))
    assert begun.policy.path == begun.init_from == str(tmp_path / "exported")
    keep_ancestry(begun, tmp_path)
    (told,) = ancestry(tmp_path)
    assert (told.source, told.run, told.step) == (begun.init_from, "", None)


def test_a_pointer_names_a_checkpoint_and_a_run_that_began_with_it_keeps_it(config, first):
    latest = str(first / "checkpoints" / "latest")
    begun = begun_from(replace(config, init_from=latest))
    save(begun, 5)
    save(replace(config, name="first"), 30, b"w30")
    assert begun_from(replace(config, init_from=latest)) == begun and weights_of(begun) == b"w20"


def test_it_outlives_what_it_began_with(config, first):
    begun = begun_from(replace(config, init_from=str(first)))
    save(begun, 5)
    shutil.rmtree(first)
    for given in (str(first), begun.init_from):
        assert begun_from(replace(config, init_from=given)) == begun
    assert weights_of(begun) == b"w20"


def test_a_run_that_goes_on_begins_where_it_began_and_another_where_the_first_one_is_now(config, first):
    begun = begun_from(replace(config, init_from=str(first)))
    save(begun, 5)
    save(replace(config, name="first"), 30, b"w30")
    assert begun_from(replace(config, init_from=str(first))) == begun
    assert weights_of(begun_from(replace(config, init_from=str(first), resume="never"))) == b"w30"
    assert weights_of(begun_from(replace(config, init_from=str(first), name="third"))) == b"w30"
    other = begun_from(replace(config, init_from=str(first / "checkpoints" / "step_00000030")))
    assert weights_of(other) == b"w30"  # which a resume will refuse: it is another run


def test_a_stored_configuration_is_its_own(config, first):
    begun = begun_from(replace(config, init_from=str(first)))
    shutil.rmtree(first)
    assert begun_from(replace(begun, name="straight")) == replace(begun, name="straight")


def test_what_a_run_began_with_and_the_cache_lost_is_asked_for(config, first):
    begun = begun_from(replace(config, init_from=str(first)))
    save(begun, 5)
    shutil.rmtree(begun.policy.path)
    with pytest.raises(ConfigError, match=r"is no longer in .*init-.*It was that of .*step_00000020.*put it back"):
        begun_from(replace(config, init_from=str(first)))


def test_ancestors_are_told_to_the_first(config, first):
    second = begun_from(replace(config, init_from=str(first)))
    save(second, 5, b"v")
    run = Path(config.output_dir) / "second"
    third = begun_from(replace(config, name="third", init_from=str(run)))
    keep_config(third, save(third, 1).parent.parent)
    told = ancestry(Path(config.output_dir) / "third")
    assert [(one.run, one.step) for one in told] == [("second", 5), ("first", 20)]
    assert len({one.weights for one in told}) == 2
    rows = read_ancestry(Path(config.output_dir) / "third")
    assert [name for name, _ in rows] == ["ancestor 1", "ancestor 2"]
    assert rows[1][1] == f"first, step 20, weights {told[1].weights}: {told[1].source}"
    assert read_ancestry(first) == []


@pytest.mark.parametrize("text", ["{", "[1]", '[{"run": 1}]', "[" * 100_000, '[{"source": "s"}]'])
def test_a_damaged_ancestry_is_none(tmp_path, text):
    (tmp_path / "ancestry.json").write_text(text)
    assert ancestry(tmp_path) == () and read_ancestry(tmp_path) == []


def test_weights_are_linked_where_the_disk_allows_it_and_else_copied(config, first, monkeypatch):
    kept = Path(begun_from(replace(config, init_from=str(first))).policy.path)
    source = first / "checkpoints" / "step_00000020" / "policy" / "model.safetensors"
    assert (kept / "model.safetensors").samefile(source)
    shutil.rmtree(kept)

    def no_links(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(origin.os, "link", no_links)
    begun_from(replace(config, init_from=str(first)))
    assert not (kept / "model.safetensors").samefile(source) and (kept / "model.safetensors").read_bytes() == b"w20"


def test_a_damaged_checkpoint_is_passed_over_and_a_damaged_one_that_is_named_is_refused(config, first):
    newest = first / "checkpoints" / "step_00000020"
    (newest / "policy" / "model.safetensors").write_bytes(b"X20")
    assert weights_of(begun_from(replace(config, init_from=str(first)))) == b"w10"
    with pytest.raises(ConfigError, match=r"init_from: .*model\.safetensors"):
        begun_from(replace(config, init_from=str(newest)))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("", "init_from: no folder .*x; give a run, a checkpoint of one, or a policy's folder"),
        ("x/notes.txt", "is neither a run, nor a checkpoint, nor a policy's folder"),
        ("x/config.yaml", "has no checkpoint yet; train it first"),
        ("x/checkpoints/README", "no valid checkpoint in it"),
    ],
)
def test_what_is_no_policy_is_refused(config, tmp_path, made, said):
    if made:
        (tmp_path / made).parent.mkdir(parents=True)
        (tmp_path / made).write_text("")
    with pytest.raises(ConfigError, match=said):
        begun_from(replace(config, init_from=str(tmp_path / "x")))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["cold_start.enabled=true"], "set cold_start.enabled=false"),
        (["policy.adapter=x"], "leave policy.adapter empty"),
    ],
)
def test_what_would_make_another_policy_of_it_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        begun_from(load_config([], ["rewards.answer.fn=answer", "init_from=x", "cold_start.enabled=false", *changes]))
