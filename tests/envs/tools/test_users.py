"""Tools of users: loaded, refused with what would work, and called so that nothing of theirs ends an episode badly."""

from dataclasses import replace

import pytest

from envs.tools.rules import RetrievalRules
from envs.tools.toolbox import ToolTagsError, builtin_toolbox
from envs.tools.users import ToolLoadError, load_toolbox, load_tools
from rewards.failures import cause_line
from rewards.scoring import WeightedReward, score_group
from rl.trajectory import RewardFailure, Segment, StopReason, Trajectory, TrajectoryGroup
from tests.calibration import within
from tests.envs.setting import make_processor, make_task
from tests.envs.tools.setting import LENGTH, RULES

CALLED = "<think><length>s</length>"
GOOD = {
    "name": "'length'",
    "tags": "('<length>', '</length>')",
    "parse": "return ToolCall('length', {'unit': 's'})",
    "tokens": "return 30",
    "insert": "return 'Eight.'",
}


def tool_file(folder, **changed):
    """A file with a tool of these parts."""
    parts = GOOD | changed
    methods = "".join(
        f"    def {name}(self, {first}, clip):\n        {parts[name]}\n"
        for name, first in (("parse", "text"), ("tokens", "call"), ("insert", "call"))
        if parts[name]
    )
    path = folder / "mine.py"
    head = (
        "import os, threading\nfrom envs.tools.tool import Shown\nfrom rl.trajectory import MalformedCall, ToolCall\n"
    )
    path.write_text(f"{head}class Mine:\n    name = {parts['name']}\n    tags = {parts['tags']}\n{methods}")
    return f"{path}:Mine"


@pytest.fixture
def ended(episodes, tmp_path):
    """What an episode that calls a tool of these parts ends in."""

    def roll_out(timeout_s=20.0, **changed):
        rules = replace(RULES, tools=("span_fps", tool_file(tmp_path, **changed)), tool_timeout_s=timeout_s)
        env = episodes.env(replace(rules, tools=("span_fps",)))
        env._tools, env._rules = load_toolbox(rules, episodes.processor), rules
        return env.step(episodes.said(CALLED))

    return roll_out


@pytest.mark.parametrize(
    ("changed", "detail", "line"),
    [
        ({"parse": "raise KeyError('gold')"}, "raised KeyError: 'gold'", "raise KeyError('gold')"),
        ({"tokens": "return 1 / 0"}, "raised ZeroDivisionError: division by zero", "return 1 / 0"),
        ({"insert": "os.listdir('/nowhere')"}, "raised FileNotFoundError", "os.listdir('/nowhere')"),
        ({"insert": "raise SystemExit(3)"}, "raised SystemExit: 3", "raise SystemExit(3)"),
        ({"parse": "return 5"}, "parse returned int, not a ToolCall, MalformedCall or RefusedCall", "def parse"),
        ({"parse": "return ToolCall('x', {'a': object()})"}, "arguments that are not plain: object is no", "def parse"),
        ({"parse": "return ToolCall('x', {'a': float('nan')})"}, "nan is no finite number", "def parse"),
        ({"tokens": "return 'few'"}, "tokens returned 'few', not how many will be inserted", "def tokens"),
        ({"tokens": "return -1"}, "tokens returned -1", "def tokens"),
        ({"insert": "return None"}, "insert returned NoneType, neither text nor Shown frames", "def insert"),
        ({"insert": "return '  '"}, "insert returned str, neither text", "def insert"),
        ({"insert": "return 'word ' * 100"}, "but had announced 30 at most", "def insert"),
    ],
)
def test_a_tool_that_fails_masks_its_trajectory_and_is_told_with_file_and_line(ended, tmp_path, changed, detail, line):
    trajectory = ended(**changed)
    assert isinstance(trajectory, Trajectory) and trajectory.stop_reason is StopReason.TOOL_ERROR
    failure = trajectory.tool_failure
    assert failure.tool == "length" and detail in failure.detail
    assert failure.location.file == str(tmp_path / "mine.py") and line in failure.location.source
    assert trajectory.note == f"tool length: {failure.detail}"


def test_a_tool_that_hangs_is_not_waited_for(ended):
    trajectory = ended(timeout_s=within(1.0), insert="threading.Event().wait()")
    assert "insert gave nothing within" in trajectory.tool_failure.detail
    assert "s (retrieval.tool_timeout_s)" in trajectory.tool_failure.detail


def test_a_trajectory_with_a_failed_tool_is_never_scored(ended, tmp_path):
    trajectory = ended(insert="raise KeyError('gold')")
    term = WeightedReward("one", lambda task, trajectory: 1.0, Segment.REASONING)
    (failure,) = score_group(TrajectoryGroup(make_task(tmp_path), (trajectory,), None), [term]).rewards_G
    assert isinstance(failure, RewardFailure) and failure.cause == "tool_error"
    assert cause_line(failure).startswith("tool 'length' failed: raised KeyError: 'gold' on task t at ")
    assert f"{tmp_path / 'mine.py'}:" in cause_line(failure)


def test_frames_of_a_wrong_size_are_told_with_the_code_that_made_them(ended, tmp_path):
    trajectory = ended(
        tokens="return 500", insert="import numpy; return Shown(numpy.zeros((1, 30, 30, 3), numpy.uint8), (0.0,))"
    )
    assert "sides in multiples of 28" in trajectory.tool_failure.detail
    assert trajectory.tool_failure.location.file == str(tmp_path / "mine.py")


def test_a_tool_may_show_pictures_of_its_own(ended):
    seen = ended(
        tokens="return clip.picture_tokens(30, 60, 3136)",
        insert="import numpy; return clip.picture(numpy.full((30, 60, 3), 90, numpy.uint8), 1.0, 3136)",
    )
    assert (seen.frames.height, seen.frames.width) == (28, 84) and seen.frames.pixels_THWC.mean() == 90


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"name": "'Two Words'"}, "its name must be of small letters, digits and _, got 'Two Words'"),
        ({"name": "None"}, "its name must be"),
        ({"tags": "'<a>'"}, "its tags must be like ("),
        ({"tags": "()"}, "its tags must be like ("),
        ({"tags": "('<a>', '</answer>')"}, "</answer> says where thought and answer are; choose another tag"),
        ({"insert": ""}, "has no insert"),
        ({"name": "'span_fps'"}, "two tools are called 'span_fps'"),
    ],
)
def test_what_is_no_tool_is_refused_with_what_would_work(tmp_path, changed, told):
    with pytest.raises(ToolLoadError, match="(?s)" + told.replace("(", r"\(")):
        load_tools(RetrievalRules(tools=("span_fps", tool_file(tmp_path, **changed))))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("zom", "unknown tool 'zom'; did you mean 'zoom'?; built in: span_fps, zoom; your own: "),
        ("/nowhere/mine.py:Mine", "tool '/nowhere/mine.py:Mine': no file /nowhere/mine.py"),
        (LENGTH.replace(":Length", ":Lenght"), "no tool 'Lenght' in .*; did you mean 'Length'?"),
    ],
)
def test_a_tool_that_is_not_there_is_refused_and_the_nearest_named(name, told):
    with pytest.raises(ToolLoadError, match=told.replace("?", r"\?")):
        load_tools(RetrievalRules(tools=(name,)))


def test_a_policy_without_the_tags_of_a_tool_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(ToolTagsError, match="tool zoom: <zoom>, </zoom>, <box>, </box> is no token of this policy"):
        builtin_toolbox(RetrievalRules(tools=("span_fps", "zoom")), make_processor(tmp_path))


def test_two_tools_that_end_alike_are_refused(episodes, tmp_path):
    rules = replace(RULES, tools=(LENGTH, tool_file(tmp_path, name="'other'")))
    with pytest.raises(ToolTagsError, match="tools length and other both end with </length>"):
        load_toolbox(rules, episodes.processor)
