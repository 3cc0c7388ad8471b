"""A text key keeps what stands there; a number key refuses what two readers of YAML would read differently."""

import pytest

from rl.config.errors import ConfigError
from rl.config.file import load_config, to_yaml
from rl.config.run import with_absolute_code

BASE = "rewards: {answer: {fn: answer}}\n"


@pytest.fixture
def load(tmp_path):
    """A configuration of this text, and of overrides on top of it."""

    def of(text, *overrides, encoding="utf-8", newline="\n"):
        path = tmp_path / "run.yaml"
        path.write_text(BASE + text, encoding=encoding, newline=newline)
        return load_config([path], overrides)

    return of


SPELLINGS = (  # as YAML 1.1 or 1.2 would make numbers, truth values, dates and times of them
    *("1.10", "007", "0100", "1e3", "1E3", "0x10", "0o17", "0b11", "1_000", "+1", "-1", ".5", "5.", "1.", "00"),
    *("on", "off", "yes", "no", "On", "NO", "y", "n", "true", "False", "TRUE", "nan", ".nan", ".inf", "-.inf"),
    *("2024-01-01", "2024-01-01T00:00:00Z", "1:30", "12:30:45", "190:20:30", "1.2.3", "a", "None", "1,000", "50%"),
)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_text_key_keeps_what_stands_there_in_files_lists_and_on_the_command_line(spelling, load, tmp_path):
    text = f"prompt: {{system: '', instructions: x}}\ndata: {{quickstart: {{question_kinds: ['a', {spelling}]}}}}\n"
    config = load(text.replace("'',", f"{spelling}," if "," not in spelling else f"'{spelling}',").replace("'a', ", ""))
    assert config.prompt.system == spelling
    assert ",".join(config.data.quickstart.question_kinds) == spelling
    config = load("", f"prompt.system={spelling}", f"rewards.{spelling.replace('.', '_')}.fn=answer")
    assert config.prompt.system == spelling and spelling.replace(".", "_") in config.rewards
    config = load(f"prompt:\n  system: {spelling}\n")
    saved = tmp_path / "saved.yaml"
    saved.write_text(to_yaml(config))
    assert load_config([saved]) == config


@pytest.mark.parametrize("name", ["1.10", "007", "on", "1e3", "2024-01-01", "1_000"])
def test_a_runs_name_is_what_was_written(name, load):
    assert load(f"name: {name}").name == load("", f"name={name}").name == load(f"name: '{name}'").name == name


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a: b", "a: b"),
        ("a # b", "a # b"),
        ("[x]", "[x]"),
        ("{x: y}", "{x: y}"),
        ("- x", "- x"),
        ("*x", "*x"),
        ("&x", "&x"),
        ("!x", "!x"),
        ("%x", "%x"),
        ("@x", "@x"),
        ("two\nlines", "two\nlines"),
        ("'quoted'", "quoted"),
        ('"quoted\\n"', "quoted\n"),
        ("it's", "it's"),
        ("a=b", "a=b"),
        ("", ""),
        ("''", ""),
        (" spaces ", "spaces"),
    ],
)
def test_a_text_on_the_command_line_is_no_yaml_but_may_be_quoted(value, text, load):
    assert load("", f"prompt.system={value}").prompt.system == text


@pytest.mark.parametrize(
    ("written", "advice"),
    [
        ("0100", "write 100"),
        ("00", "write 0"),
        ("-010", "write -10"),
        ("0o17", "write 15"),
        ("0x10", "write 16"),
        ("0b11", "write 3"),
        ("1_000", "write 1000"),
        ("1:30", "times are in seconds: write 90"),
        ("1:00:00", "write 3600"),
        ("1,000", "write 1000"),
        ("1e3", "an integer is written without point and exponent: write 1000"),
        ("10.0", "write 10"),
        ("1.5", "an integer is written without point and exponent"),
        ("1e400", "without point and exponent"),
        ("9" * 12 + "_" * 3 + "9" * 12, "write 999999999999999999999999"),
        ("0x_", ""),
        ("ten", ""),
        ("10 s", ""),
        ("0o99", ""),
        ("true", ""),
        ("2024-01-01", ""),
        ("[1]", "got a list"),
        ("{a: 1}", "got keys and values"),
        ("null", "or leave the key out for its default"),
        ("~", "or leave the key out for its default"),
        ("", "has no value"),
    ],
)
def test_an_integer_that_yaml_versions_read_differently_is_refused_with_what_to_write(written, advice, load):
    for text, overrides, origin in (
        (f"trainer:\n  steps: {written}", (), "run.yaml: "),
        ("", (f"trainer.steps={written}",), "command line: "),
    ):
        with pytest.raises(ConfigError) as refusal:
            load(text, *overrides)
        message = str(refusal.value)
        assert origin + "'trainer.steps' " in message and advice in message and "\n" not in message
        assert ("(line 3)" in message) == (not overrides)


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("1", 1.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("1E+3", 1000.0),
        ("1.5e-3", 0.0015),
        ("+2", 2.0),
        ("'2'", 2.0),
    ],
)
def test_a_number_is_what_every_reader_takes_it_for(written, number, load):
    assert load(f"scoring: {{timeout_s: {written}}}").scoring.timeout_s == number
    assert load("", f"scoring.timeout_s={written}").scoring.timeout_s == number


@pytest.mark.parametrize(
    ("written", "advice"),
    [
        ("0100", "write 100"),
        ("01.5", "write 1.5"),
        ("1_0.5", "write 10.5"),
        ("1:30", "write 90"),
        ("1:30.5", "write 90.5"),
        ("50%", "a share is a number from 0 to 1: write 0.5"),
        ("0,5", "a decimal point is wanted, no comma: write 0.5"),
        ("0x10", "write 16"),
        ("10s", "must be a number, got '10s'"),
        (".inf", "must be a finite number"),
        ("nan", "must be a finite number"),
        ("1e999", "must be a finite number"),
    ],
)
def test_a_number_that_is_read_differently_is_refused_with_what_to_write(written, advice, load):
    for text, overrides in ((f"scoring: {{timeout_s: '{written}'}}", ()), ("", (f"scoring.timeout_s={written}",))):
        with pytest.raises(ConfigError) as refusal:
            load(text, *overrides)
        assert "scoring.timeout_s" in str(refusal.value) and advice in str(refusal.value)


@pytest.mark.parametrize(
    ("written", "value"), [("on", True), ("Yes", True), ("true", True), ("off", False), ("'no'", False)]
)
def test_truth_has_the_words_of_yaml(written, value, load):
    assert load(f"resume_changed: {written}").resume_changed is value
    assert load("", f"resume_changed={written}").resume_changed is value
    with pytest.raises(ConfigError, match="'resume_changed' must be true or false, got 'maybe'"):
        load("resume_changed: maybe")


@pytest.mark.parametrize(
    ("written", "value"),
    [("true", "all"), ("False", "none"), ("on", "all"), ("0", "none"), ("language", "language"), ("auto", "auto")],
)
def test_a_key_that_was_true_or_false_is_read_as_what_these_stand_for(written, value, load):
    assert load(f"learner: {{activation_checkpointing: {written}}}").learner.activation_checkpointing == value
    assert load("", f"learner.activation_checkpointing={written}").learner.activation_checkpointing == value


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("tower", r"activation_checkpointing must be one of all, auto, language, none, vision, got 'tower'"),
        ("'true'", r"must be one of .*, got 'true'"),  # a text, not a truth value
        ("vision, freeze_vision: true", r"vision recomputes nothing with learner\.freeze_vision=true.* set language"),
    ],
)
def test_what_cannot_be_recomputed_is_refused_with_what_can(setting, told, load):
    with pytest.raises(ConfigError, match=told):
        load(f"learner: {{activation_checkpointing: {setting}}}")
    with pytest.raises(ConfigError, match=r"vision recomputes nothing with policy\.lora\.targets .* set language"):
        load("", "policy.lora.rank=8", "learner.activation_checkpointing=vision")


def test_arguments_of_a_reward_are_what_they_look_like_and_nothing_ambiguous(load):
    args = "{a: 1, b: 1.10, c: on, d: '007', e: null, f: [x, 1e3], h: {1: x, yes: 1, 1.10: 2, '007': 3}}"
    config = load("", f"rewards.mine={{fn: answer, args: {args}}}")
    assert config.rewards["mine"].args == {
        "a": 1,
        "b": 1.1,
        "c": True,
        "d": "007",
        "e": None,
        "f": ["x", 1000.0],
        "h": {1: "x", "yes": 1, "1.10": 2, "007": 3},
    }
    for written in ("007", "1:30", "0x10", "1_000", "0o17"):
        with pytest.raises(
            ConfigError, match=rf"rewards\.mine\.args\.limit: '{written}'; .*: write \d+, or '{written}'"
        ):
            load("", "rewards.mine.fn=answer", f"rewards.mine.args.limit={written}")


# The form of a file --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# only a comment\n",
        "trainer:\n  # steps: 3\n",
        "data:\n  train: &own {format: quickstart}\n  held_out: *own\n",
        "data:\n  train: &own {format: quickstart}\n  held_out: {<<: *own, path: x}\n",
        "data:\n  train: &a {path: x}\n  held_out: &b {<<: *a}\ncold_start: {traces: {<<: [*b, *a]}}\n",
    ],
)
def test_empty_sections_aliases_and_merge_keys_are_read(text, load):
    config = load(text)
    assert config.data.held_out.format == "quickstart" and config.trainer.steps == 100


def test_of_merged_keys_the_own_ones_win_and_none_counts_as_twice(load):
    text = "data:\n  train: &own {format: quickstart, path: a, video_root: v}\n  held_out: {path: b, <<: *own}\n"
    held_out = load(text).data.held_out
    assert (held_out.path, held_out.video_root) == ("b", "v")


def test_line_ends_and_byte_order_marks_say_nothing(load):
    assert load("name: x\ntrainer: {steps: 3}\n", newline="\r\n").trainer.steps == 3
    assert load("name: x\ntrainer: {steps: 3}\n", newline="\r").name == "x"
    assert load("name: x\n", encoding="utf-8-sig").name == "x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer:\n\tsteps: 3\n", r"cannot start any token \(line 3\); YAML is indented by spaces, not by tabs"),
        ("trainer: {steps: 1}\ntrainer: {steps: 2}\n", r"duplicate key trainer \(line 3\)"),
        ("trainer: {steps: 1, steps: 2}\n", r"duplicate key steps \(line 2\)"),
        ("? [a, b]\n: 1\n", r"a key must be a text \(line 2\)"),
        ("'': 1\n", r"a value without a key \(line 2\)"),
        ("1: x\n", r"unknown key '1'; did you mean"),
        ("true: x\n", r"unknown key 'true'"),
        ("trainer: 3\n", r"'trainer' must be keys and values, got '3' \(line 2\)"),
        ("trainer: null\n", r"'trainer' must be keys and values, got 'null'"),
        ("trainer: [steps]\n", r"'trainer' must be keys and values, got a list"),
        ("name: [a]\n", r"'name' must be a text, got a list"),
        ("name: {a: 1}\n", r"'name' must be a text, got keys and values"),
        (
            "name: null\n",
            r"'name' is null, which is no value in YAML; write '' for an empty text, 'null' for that text",
        ),
        ("name: ~\n", r"'name' is ~, which is no value in YAML; .*'~' for that text"),
        ("name:\n", r"'name' has no value; write ''"),
        ("name: '???'\n", r"name has to be given: \?\?\? stands for a value"),
        (
            "learner: {optimizer: {betas: 0.9}}\n",
            r"'learner.optimizer.betas' must be a list, as \[0.9, 0.95\], got '0.9'",
        ),
        ("learner: {optimizer: {betas: [a, b]}}\n", r"'learner.optimizer.betas\[0\]' must be a number, got 'a'"),
        ("trainer: {<<: [3]}\n", r"<< takes keys and values \(line 2\)"),
        ("trainer: &a {<<: *a}\n", "merged|recursive"),
        ("name: !!set {a, b}\n", "could not determine a constructor"),
        ("name: !mine x\n", "could not determine a constructor"),
        ("- a\n", "expected|not readable as YAML"),
    ],
)
def test_a_file_of_the_wrong_form_is_one_line_with_key_and_line(text, message, load):
    with pytest.raises(ConfigError, match=message) as refusal:
        load(text)
    assert "run.yaml" in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["rewards.mine.weight=1"],
            r"command line: rewards\.mine: fn has to be given: the function",
        ),
        (
            ["rewards.answer.segment=thinking"],
            r"command line: rewards\.answer\.segment must be one of reasoning, sampling",
        ),
        (["rewards.answer=1"], r"'rewards\.answer' must be keys and values, got '1'"),
        (["rewards.answer.args=1"], r"'rewards\.answer\.args' must be keys and values, got '1'"),
        (["rewards.answer.args=[1]"], r"'rewards\.answer\.args' must be keys and values, got a list"),
        (["trainer={steps: 3"], r"command line: 'trainer': not readable as YAML"),
        (["trainer.steps=[3"], r"command line: 'trainer\.steps': not readable as YAML"),
        (["learner.optimizer.betas[0]=0.8"], r"unknown key 'learner\.optimizer\.betas\.0'; did you mean"),
        (["prompt.system=\udcff"], r"command line: 'prompt\.system': not UTF-8 text"),
        (["trainer..steps=3"], r"unknown key 'trainer\.'"),
    ],
)
def test_a_wrong_override_is_one_line(overrides, message, load):
    with pytest.raises(ConfigError, match=message) as refusal:
        load("", *overrides)
    assert "\n" not in str(refusal.value)


def test_sections_may_be_given_on_the_command_line_and_keys_in_brackets(load):
    config = load("", "trainer={steps: 3, save_every: 1}", "trainer.steps=4", "rewards[answer].weight=2")
    assert (config.trainer.steps, config.trainer.save_every, config.rewards["answer"].weight) == (4, 1, 2.0)
    assert load("", "learner.optimizer.betas=[0.8, 0.9]").learner.optimizer.betas == [0.8, 0.9]


def test_a_value_out_of_range_is_told_with_its_line(load):
    with pytest.raises(ConfigError, match=r"run\.yaml: rollout\.group_size must be >= 2 .*got 1 \(line 4\)$"):
        load("rollout:\n  tasks_per_step: 8\n  group_size: 1\n")


# Paths ---------------------------------------------------------------------------------------------------------------


PATHS = (
    *("output_dir", "cache_dir", "policy.path", "data.train.path", "data.train.video_root", "data.held_out.path"),
    *("data.held_out.video_root", "data.quarantine", "cold_start.traces.path", "cold_start.traces.video_root"),
    *("learner.deepspeed_config", "evaluation.path", "evaluation.video_root", "resume"),
)


def value_of(config, key):
    for part in key.split("."):
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    return config


@pytest.mark.parametrize("key", PATHS)
def test_the_home_folder_is_meant_by_a_tilde_in_every_path(key, load, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    nested = key.replace(".", ": {") + ": ~/runs" + "}" * key.count(".")
    assert value_of(load(nested), key) == value_of(load("", f"{key}=~/runs"), key) == "/home/somebody/runs"
    assert value_of(load("", f"{key}=~"), key) == "/home/somebody"
    assert value_of(load("", f"{key}=runs/~old"), key) == "runs/~old"
    with pytest.raises(ConfigError, match=r"'~nobody_here/x': there is no user 'nobody_here'"):
        load("", f"{key}=~nobody_here/x")
    for variable in ("$HOME/runs", "${HOME}/runs", "a/$USER"):
        for text, overrides in ((nested.replace("~/runs", f"'{variable}'"), ()), ("", (f"{key}={variable}",))):
            with pytest.raises(ConfigError, match=r"oc\.env:DYNFRAME_NAME"):
                load(text, *overrides)
    with pytest.raises(ConfigError, match=r"'file:///data/x' is a URL; write the path, as '/data/x'"):
        load("", f"{key}=file:///data/x")


def test_a_variable_of_ours_may_hold_a_path_from_the_home_folder(load, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("DYNFRAME_PLACE", "~/data")
    assert load("output_dir: ${oc.env:DYNFRAME_PLACE}/runs").output_dir == "/home/somebody/data/runs"
    monkeypatch.setenv("DYNFRAME_PLACE", "${oc.env:HOME}")
    with pytest.raises(ConfigError, match="of interpolations only"):
        load("prompt: {system: '${oc.env:DYNFRAME_PLACE}'}")
    monkeypatch.setenv("DYNFRAME_STEPS", "0100")
    with pytest.raises(ConfigError, match=r"'trainer\.steps' must be an integer, got '0100'.*write 100"):
        load("", "trainer.steps=${oc.env:DYNFRAME_STEPS}")
    with pytest.raises(
        ConfigError, match=r"the variable DYNFRAME_UNSET is not set; set it, or write \$\{oc\.env:DYNFRAME_U"
    ):
        load("", "trainer.steps=${oc.env:DYNFRAME_UNSET}")
    assert load("", "trainer.steps=${oc.env:DYNFRAME_UNSET, 7}").trainer.steps == 7


def test_texts_that_are_no_paths_keep_tildes_and_dollars(load):
    assert load("prompt: {system: ~/x costs $5}").prompt.system == "~/x costs $5"


CODE = (
    "rewards.answer.fn",
    "data.train.format",
    "data.held_out.format",
    "cold_start.traces.format",
    "evaluation.benchmark",
)


@pytest.mark.parametrize("key", CODE)
def test_code_lies_beside_the_file_that_names_it_and_on_the_command_line_here(key, tmp_path, monkeypatch):
    project = tmp_path / "project"
    (project / "configs").mkdir(parents=True)
    (project / "elsewhere").mkdir()
    base = project / "base.yaml"
    base.write_text(BASE)
    file = project / "configs" / "run.yaml"
    monkeypatch.setenv("HOME", str(tmp_path))

    def loaded(name, *overrides):
        nested = key.replace(".", ": {") + f": '{name}'" + "}" * key.count(".")
        file.write_text(nested if name else "")
        config = load_config([base, file], ["cold_start.enabled=false", "evaluation.path=x", *overrides])
        return value_of(config, key)

    monkeypatch.chdir(project)
    assert loaded("mine.py:f") == loaded("./mine.py:f") == "configs/mine.py:f"
    assert loaded("../mine.py:f") == loaded("", f"{key}=mine.py:f") == "mine.py:f"
    assert loaded("/mine.py:f") == "/mine.py:f" and loaded("~/mine.py:f") == f"{tmp_path}/mine.py:f"
    assert loaded("package.mine:f") == "package.mine:f"
    monkeypatch.chdir(project / "elsewhere")
    assert loaded("mine.py:f") == str(project / "configs" / "mine.py:f")
    with pytest.raises(ConfigError, match=r"variables of the shell are not read here"):
        loaded("$HOME/mine.py:f")


def test_what_is_written_for_others_names_code_by_its_absolute_path(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load(
        "data: {train: {format: 'mine.py:rows', path: x}}\n", "rewards.m.fn=mine.py:f", "cold_start.enabled=false"
    )
    assert config.rewards["m"].fn == "mine.py:f" and config.data.train.format == "mine.py:rows"
    whole = with_absolute_code(config)
    assert whole.rewards["m"].fn == f"{tmp_path}/mine.py:f" and whole.data.train.format == f"{tmp_path}/mine.py:rows"
    assert (whole.rewards["answer"].fn, whole.data.held_out.format) == ("answer", "quickstart")
    (tmp_path / "runs").mkdir()
    saved = tmp_path / "runs" / "config.yaml"
    saved.write_text(to_yaml(whole))
    assert load_config([saved]) == config
