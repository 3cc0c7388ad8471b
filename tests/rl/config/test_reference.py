"""The reference of configuration keys: complete, with a reason for each, and true to the schema."""

from dataclasses import dataclass

import pytest

from rl.config import reference
from rl.config.keys import known_keys
from rl.config.reference import configuration_reference, markdown_table

KEYS = {key.name: key for section in configuration_reference() for key in section.keys}


def test_every_key_of_the_schema_is_there_once_and_nothing_else():
    known = known_keys()
    leaves = [key for key in known if not any(other.startswith(f"{key}.") for other in known)]
    listed = [key.name for section in configuration_reference() for key in section.keys]
    assert sorted(listed) == sorted(leaves)


def test_every_key_has_a_reason_and_every_section_a_meaning():
    assert [name for name, key in KEYS.items() if not key.reason] == []
    assert [section.name for section in configuration_reference() if not section.meaning] == []


def test_every_length_of_time_and_size_has_its_unit():
    lacking = [name for name, key in KEYS.items() if name.endswith(("_s", "_mib", "_gib", "_bytes")) and not key.unit]
    assert lacking == []


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("rollout.group_size", ("integer", "8", "trajectories")),
        ("rollout.stall_timeout_s", ("number", "180.0", "s")),
        ("video.decode_memory_mib", ("integer", "2048", "MiB")),
        ("policy.path", ("text", '""', "")),
        ("rollout.deterministic", ("true or false", "false", "")),
        ("learner.optimizer.betas", ("list of numbers", "[0.9, 0.95]", "")),
        ("rewards.*.fn", ("text", "", "")),
        ("rewards.*.args", ("keys and values", "{}", "")),
    ],
)
def test_type_default_and_unit_are_those_of_the_schema(name, row):
    key = KEYS[name]
    assert (key.type, key.default, key.unit) == row


def test_a_section_comes_with_the_sections_in_it():
    sections = ["policy", "policy.tiny", "policy.scenes", "policy.lora"]
    assert [section.name for section in configuration_reference("policy")] == sections
    assert [section.name for section in configuration_reference("rollout.engine")] == ["rollout.engine"]
    assert [section.name for section in configuration_reference("rewards")] == ["rewards.*"]
    assert configuration_reference("roll") == []


@dataclass(frozen=True)
class Sample:
    """A section."""

    behind: int = 0  # one
    # two, on the line
    # above
    above: int = 0
    continued: int = 0  # three, and
    #   so on
    spread: tuple[int, ...] = (
        1,  # four
    )
    silent: int = 0


def test_a_reason_stands_behind_its_key_above_it_or_goes_on_below_it():
    assert reference._reasons(Sample) == {
        "behind": "one",
        "above": "two, on the line above",
        "continued": "three, and so on",
        "spread": "four",
        "silent": "",
    }


def test_a_table_in_markdown_keeps_bars_inside_its_cells():
    lines = markdown_table([KEYS["policy.dtype"], KEYS["rewards.*.fn"]]).splitlines()
    assert lines[0] == "| key | type | default | unit | what it is |"
    assert lines[2].startswith('| `policy.dtype` | text | `"float32"` |  | float32 \\| bfloat16')
    assert lines[3].startswith("| `rewards.*.fn` | text |  |  | ")
