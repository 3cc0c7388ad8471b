"""From a run to a folder: whole or not there, read again by this package, known as the policy that it is."""

import json
import shutil

import pytest

from rl.checkpoint.store import CheckpointStore
from rl.config.errors import ConfigError
from rl.config.file import with_defaults
from rl.evaluation.run_evaluation import policy_sha256
from rl.export.export_run import episode_section, run_export
from rl.policy.model import load_policy
from rl.policy.processor import Processor
from rl.trajectory import RunState
from tests.rl.export.conftest import SCENES

CONFIG = "name: small\nrewards: {answer: {fn: answer, segment: reasoning, weight: 1.0}}\n"


def write_run(home, policy, *, without=""):
    """A run with one checkpoint, of step 2, and an evaluation of it and of another."""
    store = CheckpointStore(home)
    draft = store.begin(2)
    shutil.copytree(policy, draft / "policy", dirs_exist_ok=True)
    if without:
        (draft / "policy" / without).unlink()
    store.commit(draft, RunState(step=2, policy_version=2, seed=0), CONFIG)
    lines = [{"step": step, "reward/reasoning": step - 0.25} for step in (1, 2)]
    (home / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for name, step in (("this", 2), ("another", 1)):
        report = {"benchmark": name, "metrics": {"accuracy": {"value": 0.5, "n": 4}}, "policy": {"step": step}}
        (home / "eval" / name).mkdir(parents=True)
        (home / "eval" / name / "metrics.json").write_text(json.dumps(report))
    return home


def test_a_run_becomes_a_folder_with_code_processor_and_card(policy, family, tmp_path):
    run_export(write_run(tmp_path / "run", policy), tmp_path / "exported")
    folder = tmp_path / "exported"
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"]["AutoModelForImageTextToText"] == f"modeling_{family.model_type}.{family.architecture}"
    for file, _, name in (entry.partition(".") for entry in config["auto_map"].values()):
        assert f"class {name}" in (folder / f"{file}.py").read_text()
    about = json.loads((folder / "processor_config.json").read_text())
    assert about["episode"]["coarse"]["max_frames"] == 64 and about["geometry"]["model_type"] == family.own_model_type
    card = (folder / "README.md").read_text()
    assert "step 2" in card and "| 2 | 1.750 |" in card and "`this`" in card and "`another`" not in card

    assert (folder / "model.safetensors").read_bytes() == (policy / "model.safetensors").read_bytes()
    assert policy_sha256(folder) == policy_sha256(policy)  # evaluations of the one go on with the other
    assert load_policy(folder, SCENES).config.architectures == [family.architecture]
    assert Processor.from_pretrained(folder, SCENES).ids == Processor.from_pretrained(policy, SCENES).ids


def test_what_is_there_is_not_overwritten_and_what_cannot_be_used_leaves_nothing(policy, tmp_path):
    run = write_run(tmp_path / "run", policy, without="tokenizer.json")
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="there exists already"):
        run_export(run, tmp_path / "there")
    with pytest.raises(ConfigError, match="neither a run nor a checkpoint"):
        run_export(tmp_path / "there", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"tokenizer\.json: no such file"):
        run_export(run, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "there"]


def test_tools_of_the_users_own_are_named_without_where_they_lie():
    tools = ["span_fps", "/home/somebody/my_tools.py:Length", "theirs:TOOL"]
    section = episode_section(with_defaults({"retrieval": {"tools": tools}}))
    assert section["retrieval"]["tools"] == ["span_fps", "my_tools.py:Length", "theirs:TOOL"]
