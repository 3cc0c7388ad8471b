"""Files and overrides on a command line, and what is said where a key has lost its `=`."""

import pytest

from rl.config.errors import ConfigError
from rl.config.inputs import split_inputs


def test_files_and_overrides_keep_their_order():
    paths, overrides = split_inputs(["a.yaml", "trainer.steps=3", "b.yaml", "name=x", "policy.path="])
    assert (paths, overrides) == (["a.yaml", "b.yaml"], ["trainer.steps=3", "name=x", "policy.path="])


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["trainer.steps", "3"], "trainer.steps=3"),
        (["trainer.steps", "=", "3"], "trainer.steps=3"),
        (["trainer.steps=", "3"], "trainer.steps=3"),
        (["trainer.step", "3"], "trainer.steps=3"),
        (["rewards.answer.weight", "0.5"], "rewards.answer.weight=0.5"),
        (["trainer.steps"], "trainer.steps=VALUE"),
        (["trainer.steps", "name=x"], "trainer.steps=VALUE"),
    ],
)
def test_a_key_without_its_equals_sign_is_answered_with_what_was_meant(words, meant):
    with pytest.raises(ConfigError, match=rf"has no value; did you mean {meant}\?$"):
        split_inputs(["a.yaml", *words])


def test_a_file_may_be_called_like_a_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trainer").write_text("trainer: {steps: 3}\n")
    assert split_inputs(["trainer"]) == (["trainer"], [])


def test_a_command_without_a_file_is_refused():
    with pytest.raises(ConfigError, match="name at least one YAML file"):
        split_inputs(["trainer.steps=3"])


def test_a_configuration_that_comes_along_may_be_named_alone():
    assert split_inputs(["quickstart", "lora", "name=x"]) == (["quickstart", "lora"], ["name=x"])
