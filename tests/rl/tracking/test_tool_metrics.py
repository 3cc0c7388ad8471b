"""What became of the calls of each tool."""

from rl.group_summary import TrajectorySummary
from rl.tracking.metrics import describe
from rl.tracking.records import call_record
from rl.tracking.step_metrics import tool_metrics
from rl.trajectory import MalformedCall, RefusedCall, RetrievalCall, StopReason, TimeSpan, ToolCall

LOOK = RetrievalCall(TimeSpan(1, 2), 2.0, TimeSpan(1, 2), 2.0, 2)
ZOOM = ToolCall(
    "zoom", {"time_s": 1.5, "box": (0.0, 0.0, 500.0, 500.0)}, (), TimeSpan(1.5, 1.5), (0.0, 0.0, 500.0, 500.0)
)


def trajectory(*calls):
    return TrajectorySummary((), calls, StopReason.ANSWERED, None)


def test_calls_and_their_fates_are_told_by_tool():
    trajectories = [
        trajectory(LOOK, ZOOM),
        trajectory(MalformedCall("the box is not four numbers", "zoom")),
        trajectory(RefusedCall("the window is reversed")),
        trajectory(),
    ]
    assert tool_metrics(trajectories, "rollout/tool/") == {
        "rollout/tool/span_fps/calls": 0.5,
        "rollout/tool/span_fps/granted": 0.5,
        "rollout/tool/span_fps/malformed": 0.0,
        "rollout/tool/span_fps/refused": 0.5,
        "rollout/tool/zoom/calls": 0.5,
        "rollout/tool/zoom/granted": 0.5,
        "rollout/tool/zoom/malformed": 0.5,
        "rollout/tool/zoom/refused": 0.0,
    }


def test_where_only_looks_are_asked_for_there_is_nothing_to_tell_apart():
    assert tool_metrics([trajectory(LOOK), trajectory()], "rollout/tool/") == {}


def test_every_such_number_is_described():
    for name in ("rollout/tool/zoom/calls", "held_out/tool/my_tool/refused"):
        assert describe(name)[1].startswith("of one tool, by its name")


def test_a_record_names_the_tool_except_of_looks_as_earlier_versions_wrote_them():
    assert "tool" not in call_record(LOOK)
    assert call_record(ZOOM) == {
        "tool": "zoom",
        "arguments": {"time_s": 1.5, "box": (0.0, 0.0, 500.0, 500.0)},
        "granted_s": [1.5, 1.5],
        "box": [0.0, 0.0, 500.0, 500.0],
    }
    assert call_record(RefusedCall("why", "zoom")) == {"tool": "zoom", "refused": "why"}
