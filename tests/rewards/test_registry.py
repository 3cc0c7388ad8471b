"""A reward is a name: built in, in a module, or in a file; every mistake is refused at load, with a remedy."""

import pytest

from rewards.registry import BUILTIN, RewardLoadError, resolve

FILE = """
def brevity(task, trajectory, *, limit=100):
    return float(len(trajectory.answer_text) <= limit)

def narrow(task, call):
    return 1.0

async def later(task, trajectory):
    return 1.0

not_a_function = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_rewards.py"
    path.write_text(FILE)
    return path


@pytest.mark.parametrize("name", BUILTIN)
def test_every_built_in_resolves(name):
    assert callable(resolve(name))


def test_module_and_file(file, task, trajectory_of):
    assert resolve("rewards.answer:answer") is resolve("answer")
    assert resolve(f"{file}:brevity")(task(), trajectory_of("short")) == 1.0
    assert resolve(f"{file}:brevity", {"limit": 3})(task(), trajectory_of("longer")) == 0.0


def test_a_relative_file_is_looked_up_from_here(file, monkeypatch):
    monkeypatch.chdir(file.parent)

    assert callable(resolve("my_rewards.py:narrow", segment="sampling"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("temporal_iuo", r"unknown reward 'temporal_iuo'; did you mean 'temporal_iou'\?; built in: answer"),
        ("rewards.answer:answr", "no function 'answr' in rewards.answer; did you mean 'answer'"),
        ("no_such_module:fn", "cannot import no_such_module: ModuleNotFoundError.*PYTHONPATH"),
        ("FILE:narow", "no function 'narow'.*did you mean 'narrow'"),
        ("FILE:not_a_function", "no function 'not_a_function'"),
        ("FILE:later", "async"),
        ("FOLDER/my_reward.py:fn", "no file .*my_reward.py; did you mean 'my_rewards.py'"),
        (":answer", "unknown reward"),
        ("rewards.answer:", "unknown reward"),
    ],
)
def test_what_cannot_be_found(file, name, message):
    with pytest.raises(RewardLoadError, match=message):
        resolve(name.replace("FILE", str(file)).replace("FOLDER", str(file.parent)))


def test_a_file_that_breaks_on_import_is_named_and_can_be_mended(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("import json\njson.loads('{')")
    with pytest.raises(RewardLoadError, match=r"cannot load .*broken.py: JSONDecodeError"):
        resolve(f"{broken}:fn")

    broken.write_text("def fn(task, trajectory): return 1.0")
    assert callable(resolve(f"{broken}:fn"))


@pytest.mark.parametrize(
    ("name", "args", "segment", "message"),
    [
        (
            "frame_rate",
            {"tolerance": 3},
            "sampling",
            r"no argument 'tolerance'; did you mean 'tolerance_fps'\?; it takes",
        ),
        ("answer", {"strict": True}, "reasoning", "no argument 'strict'; it takes reading"),
        ("frame_rate", {"call": 3}, "sampling", "no argument 'call'"),
        ("math:sqrt", {}, "reasoning", "cannot be called as fn"),
        ("temporal_iou", {}, "reasoning", "scores a call: its segment must be 'sampling', not 'reasoning'"),
        ("answer", {}, "sampling", "scores a trajectory: its segment must be 'reasoning'"),
    ],
)
def test_signatures_are_checked_at_load(name, args, segment, message):
    with pytest.raises(RewardLoadError, match=message):
        resolve(name, args, segment=segment)
