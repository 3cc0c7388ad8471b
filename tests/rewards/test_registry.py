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
    assert callable(resolve(name, {"model": "m"} if name == "judge" else {}))


def test_a_judge_without_a_model_is_refused():
    with pytest.raises(RewardLoadError, match="missing a required argument: 'model'"):
        resolve("judge")


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


KINDS = """
import functools

async def later(task, trajectory): return 1.0
def several(task, trajectory): yield 1.0
async def both(task, trajectory): yield 1.0
class Judge:
    def __init__(self, value=1.0): self.value = value
    def __call__(self, task, trajectory): return self.value
class Later:
    async def __call__(self, task, trajectory): return 1.0
class Hostile:
    def __call__(self, task, trajectory): return 1.0
    def __getattribute__(self, name): raise OSError("no " + name)
partial_later, later_instance, hostile = functools.partial(later), Later(), Hostile()
lacking = functools.partial(lambda task, trajectory, k: k)
lonely = Judge().value
number = 3
def one(task): return 1.0
def three(task, trajectory, third): return 1.0
def by_keyword(*, task, trajectory): return 1.0
def none(): return 1.0
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("several", "is a generator: it yields where a reward returns"),
        ("both", "is an async generator"),
        ("Judge", "is a class; name an instance of it that can be called, or a function"),
        ("hostile", "cannot be looked at: OSError: no "),
        (
            "lacking",
            r"partial\(<lambda>\)\(task, trajectory, k\) cannot be called as fn\(task, call or trajectory\): miss",
        ),
        ("lonely", "no function 'lonely': it is of type float, which cannot be called"),
        ("one", "cannot be called as .*too many positional arguments"),
        ("three", "cannot be called as .*missing a required argument: 'third'"),
        ("by_keyword", "cannot be called as .*too many positional arguments"),
        ("none", "cannot be called as"),
        ("Judge.nothing", "no function 'nothing' in .*kinds.py"),
    ],
)
def test_what_is_no_reward_is_refused_by_its_kind(tmp_path, name, message):
    (tmp_path / "kinds.py").write_text(KINDS)
    with pytest.raises(RewardLoadError, match=message) as refusal:
        resolve(f"{tmp_path}/kinds.py:{name}")
    assert "\n" not in str(refusal.value)


def test_a_file_without_its_function_is_answered_with_those_it_has(file):
    with pytest.raises(RewardLoadError, match=rf"which function of it\? {file}:brevity, {file}:narrow"):
        resolve(str(file))


def test_arguments_are_matched_with_signatures_of_every_form(tmp_path):
    (tmp_path / "forms.py").write_text(
        "def starred(*args, limit=1): return limit\n"
        "def open_ended(task, trajectory, **anything): return anything['x']\n"
        "def positional(task, trajectory, /, limit=1): return limit\n"
        "def only(task, trajectory, limit=1, /): return limit\n"
    )
    for name, args in {"starred": {"limit": 2}, "open_ended": {"x": 2}, "positional": {"limit": 2}}.items():
        assert resolve(f"{tmp_path}/forms.py:{name}", args)(None, None) == 2
    for name, key, message in (("starred", "limits", "did you mean 'limit'"), ("only", "limit", "it takes none")):
        with pytest.raises(RewardLoadError, match=f"no argument '{key}'; {message}"):
            resolve(f"{tmp_path}/forms.py:{name}", {key: 2})


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
