"""A configuration that somebody else wrote, or that went wrong: refused in one clear line, or a sound run."""

import math
import os
import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.config.errors import ConfigError
from rl.config.file import load_config, to_dict, to_yaml
from rl.config.keys import known_keys
from rl.config.run import RunConfig
from rl.config.yaml_text import plain_yaml

pytestmark = pytest.mark.thorough

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
LEAVES = [key for key in known_keys() if not any(other.startswith(f"{key}.") for other in known_keys())]
HOSTILE = {
    "NaN": math.nan,
    "infinite": math.inf,
    "minus infinite": -math.inf,
    "1e308": 1e308,
    "10**30": 10**30,
    "10**400": 10**400,
    "-1": -1,
    "-0.5": -0.5,
    "0": 0,
    "null": None,
    "a list": [1, "a", None],
    "a mapping": {"a": {"b": [1]}},
    "a text": "many",
    "no text": "",
    "bytes": b"\xff\x00",
    "a million characters": "x" * 1_000_000,
    "true": True,
    "odd text": "\x1b[31m\u202e\u2028</script>",
}

INSIDE = re.compile(  # words of the library that merges, and of Python, which say nothing to a user
    "omegaconf|dictconfig|listconfig|anynode|stringnode|full_key|object_type|reference_type|structured|containernode|"
    "not optional|incompatible|could not be converted|isinstance|traceback|nonetype|dataclass|interpolationkey|<class",
    re.IGNORECASE,
)


def nested(key, value):
    for part in reversed(key.replace("*", "answer").split(".")):
        value = {part: value}
    return value


@pytest.mark.cli  # half a minute; `LEAVES` instead of a sixth of them takes four
@pytest.mark.parametrize("place", range(len(HOSTILE)), ids=HOSTILE)
def test_a_hostile_value_of_any_key_is_refused_by_its_name_or_makes_a_sound_run(place, tmp_path):
    value = list(HOSTILE.values())[place]
    every = 24 if isinstance(value, str) and len(value) > 1_000 else 6  # a long text takes as long to write and read
    for key in LEAVES[place % 6 :: every]:
        refused_or_sound(key, value, tmp_path)


def test_hostile_values_of_some_keys_are_refused_by_their_names_or_make_sound_runs(tmp_path):
    values = list(HOSTILE.values())
    for place, key in enumerate(LEAVES[::4]):
        refused_or_sound(key, values[place % len(values)], tmp_path)


def refused_or_sound(key, value, folder):
    file = folder / "hostile.yaml"
    file.write_text(yaml.safe_dump(nested(key, value), allow_unicode=True), encoding="utf-8")
    try:
        config = load_config([QUICKSTART, file])
    except ConfigError as refusal:
        assert "\n" not in str(refusal) and len(str(refusal)) < 1_500 and not INSIDE.search(str(refusal))
        assert key.split(".")[-1].replace("*", "answer") in str(refusal), (key, str(refusal))
    else:
        assert all(math.isfinite(number) and 0 <= number < 2**63 for number in numbers(config)), key
        assert yaml.safe_load(to_yaml(config)) is not None


def numbers(node):
    """Every number of a configuration, but those that a reward function judges itself."""
    if is_dataclass(node):
        return [n for field in fields(node) if field.name != "args" for n in numbers(getattr(node, field.name))]
    if isinstance(node, dict):
        return [n for value in node.values() for n in numbers(value)]
    if isinstance(node, list):
        return [n for value in node for n in numbers(value)]
    return [node] if isinstance(node, int | float) and not isinstance(node, bool) else []


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates() | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=6,
)
TREES = st.dictionaries(
    st.sampled_from([f.name for f in fields(RunConfig)]) | st.text(max_size=5),
    VALUES | st.dictionaries(st.sampled_from([key.split(".")[-1] for key in known_keys()]), VALUES, max_size=3),
    max_size=3,
)


@settings(max_examples=25)
@given(tree=TREES)
def test_any_yaml_is_a_configuration_or_one_clear_line(tree, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    try:
        load_config([QUICKSTART, file])
    except ConfigError as refusal:
        assert "\n" not in str(refusal) and len(str(refusal)) < 1_500 and not INSIDE.search(str(refusal))


@settings(max_examples=25)
@given(raw=st.binary() | st.text(alphabet="{}[]&*!-:?|>'\"#%@`, \n\tab1${}.").map(str.encode))
def test_any_bytes_are_a_configuration_or_one_clear_line(raw, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "bytes.yaml"
    file.write_bytes(raw)
    try:
        load_config([QUICKSTART, file], [f"prompt.system={raw.decode('latin-1')}"])
    except ConfigError as refusal:
        assert "\n" not in str(refusal) and len(str(refusal)) < 1_500 and not INSIDE.search(str(refusal))


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "expansion exceeds"),
        ("rewards: &a {answer: *a}\n", "recursive aliases"),
        ("prompt: {system: " + "[" * 100_000 + "]" * 100_000 + "}", r"line 1: nested more than 32 deep"),
        ("{a: " * 20_000 + "1" + "}" * 20_000, "nested more than 32 deep"),
        ("".join(f"{' ' * i}a:\n" for i in range(40)), "line 33: nested more than 32 deep"),
        ("name: a\nname: b\n", r"duplicate key name \(line 2\)"),
        ("rollout:\n\tgroup_size: 4\n", r"cannot start any token \(line 2\)"),
        ("name: a\n---\nname: b\n", "line 2: a second document begins"),
        ("name: a\0b\n", "control characters"),
        ("seed: " + "9" * 400, "seed must be below 2\\*\\*63, got a huge integer"),
        ("seed: " + "9" * 5_000, r"seed must be below 2\*\*63, got a huge integer"),
        ("? " + "k" * 100_000 + "\n: 1\n", r"unknown key 'k{100}'…; did you mean"),
        ("name: !!python/object/apply:os.system [id]\n", "could not determine a constructor"),
        ("name: !!python/name:os.system\n", "could not determine a constructor"),
        ("#" * 2**20 + "#", "larger than 1,048,576 bytes"),
        ("learner: {optimizer: {lr: .nan}}", "hostile.yaml: learner.optimizer.lr must be a finite number, got nan"),
        ("learner: {timeout_s: 1e300}", "learner.timeout_s must be below"),
        ("learner: {timeout_s: 1e9}", r"learner.timeout_s must be <= 1e\+08 s"),
        ("policy: {tiny: {num_kv_heads: 0}}", r"policy\.tiny\.num_kv_heads must be >= 1, got 0"),
        ("rewards: {answer: {args: {a: .inf}}}", r"rewards\.answer\.args\.a must be a finite number"),
    ],
)
def test_what_would_explode_is_refused_before_it_is_built(text, message, tmp_path):
    file = tmp_path / "hostile.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as refusal:
        load_config([QUICKSTART, file])
    assert "\n" not in str(refusal.value)


def test_only_regular_files_of_text_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9\n")
    for path, message in {
        tmp_path: "Is a directory",
        tmp_path / "pipe": "pipe: not a regular file",  # nobody writes to it: opening it would wait for ever
        Path("/dev/zero"): "/dev/zero: not a regular file",
        tmp_path / "latin.yaml": "must be UTF-8 text",
        tmp_path / ("x" * 300): "File name too long",
    }.items():
        with pytest.raises(ConfigError, match=message):
            load_config([path])


@pytest.mark.parametrize(
    "value", ["${oc.env:HOME}", "${oc.env:AWS_SECRET_ACCESS_KEY,x}", "${policy.dtype}", "a${name}", "${", "\\${x}"]
)
def test_no_interpolation_can_carry_a_secret_into_the_saved_configuration(value, tmp_path):
    file = tmp_path / "hostile.yaml"
    file.write_text(yaml.safe_dump({"prompt": {"system": value}}))
    for paths, overrides in (([QUICKSTART, file], []), ([QUICKSTART], [f"prompt.system={value}"])):
        with pytest.raises(ConfigError, match=r"only \$\{oc\.env:DYNFRAME_NAME,default\} is allowed"):
            load_config(paths, overrides)


def test_a_variable_of_ours_may_say_where_the_data_lie(monkeypatch):
    monkeypatch.setenv("DYNFRAME_REAL_DATA", "/data")
    path = "data.train.path=${oc.env:DYNFRAME_REAL_DATA,data}/rows.jsonl"
    assert load_config([QUICKSTART], [path]).data.train.path == "/data/rows.jsonl"
    monkeypatch.delenv("DYNFRAME_REAL_DATA")
    assert load_config([QUICKSTART], [path]).data.train.path == "data/rows.jsonl"


def test_a_configuration_from_a_checkpoint_builds_what_it_says_and_no_more():
    config = load_config([QUICKSTART])
    assert plain_yaml(to_yaml(config), "step/config.yaml") == to_dict(config)
    for text in (LAUGHS, "[" * 100_000, "a: !!python/object/apply:os.getcwd []", "a: " + "9" * 5_000, "a: [1"):
        with pytest.raises(ConfigError, match=r"step/config\.yaml"):
            plain_yaml(text, "step/config.yaml")
