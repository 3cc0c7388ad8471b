"""A zoom's reward: IoU of the box times nearness in time."""

import pytest

from rewards.output_format import output_format
from rewards.scoring import WeightedReward, score_group
from rewards.temporal_iou import temporal_iou
from rewards.zoom_region import box_iou, zoom_region
from rl.trajectory import (
    AnswerKind,
    Completion,
    RefusedCall,
    RetrievalCall,
    Segment,
    StopReason,
    TimeSpan,
    ToolCall,
    Trajectory,
    TrajectoryGroup,
    Turn,
    VideoTask,
)

BOX = (100.0, 100.0, 300.0, 300.0)


def task(box=BOX, **extra):
    columns = extra | ({} if box is None else {"box": box})
    return VideoTask("t", "/clip.mp4", "?", "B", AnswerKind.LETTER, TimeSpan(2.0, 4.0), 4.0, extra=columns)


def zoom(time_s=3.0, box=BOX):
    return ToolCall("zoom", {"time_s": time_s, "box": box}, box=box)


def look(start_s, end_s):
    return RetrievalCall(TimeSpan(start_s, end_s), 2.0, TimeSpan(start_s, end_s), 2.0, 4)


def trajectory(*calls):
    turns = [Turn((1,), Completion((2,), (-0.5,), "stop", 0), Segment.SAMPLING, call) for call in calls]
    turns.append(Turn((1,), Completion((3,), (-0.5,), "stop", 0), Segment.REASONING))
    return Trajectory(tuple(turns), StopReason.ANSWERED, "<think>x</think><answer>B</answer>")


@pytest.mark.parametrize(
    ("time_s", "box", "expected"),
    [
        (3.0, BOX, 1.0),
        (2.0, BOX, 1.0),
        (4.25, BOX, 0.75),
        (1.5, BOX, 0.5),
        (5.0, BOX, 0.0),
        (3.0, (100.0, 100.0, 300.0, 200.0), 0.5),
        (3.0, (200.0, 200.0, 400.0, 400.0), 1 / 7),
        (1.5, (100.0, 100.0, 300.0, 200.0), 0.25),
        (3.0, (500.0, 500.0, 600.0, 600.0), 0.0),
    ],
)
def test_overlap_of_the_box_times_nearness_in_time(time_s, box, expected):
    assert zoom_region(task(), zoom(time_s, box)) == pytest.approx(expected)


def test_without_an_annotated_region_it_does_not_apply():
    assert zoom_region(task(box=None), zoom()) is None


def test_another_column_may_hold_the_region():
    assert zoom_region(task(box=None, region=[100, 100, 300, 300]), zoom(), column="region") == 1.0


@pytest.mark.parametrize("box", [[1, 2, 3], "1 2 3 4", [300, 100, 100, 300], [0, 0, 1, 2000], 7])
def test_an_annotation_that_is_no_region_is_an_error_that_names_the_column(box):
    with pytest.raises(ValueError, match="column 'box' must be"):
        zoom_region(task(box=box), zoom())


def test_iou_is_symmetric_and_one_only_of_equals():
    other = (150.0, 100.0, 300.0, 350.0)
    assert box_iou(BOX, other) == box_iou(other, BOX) < 1 == box_iou(BOX, BOX)


def scored(*calls, how="mean"):
    terms = [
        WeightedReward("window", temporal_iou, Segment.SAMPLING, tool="span_fps"),
        WeightedReward("region", zoom_region, Segment.SAMPLING, tool="zoom"),
        WeightedReward("price", lambda task, call: 0.5, Segment.SAMPLING, weight=0.0),
        WeightedReward("one", lambda task, trajectory: 1.0, Segment.REASONING),
    ]
    (outcome,) = score_group(TrajectoryGroup(task(), (trajectory(*calls),), None), terms, calls=how).rewards_G
    return outcome


def test_each_call_is_scored_by_the_terms_of_its_tool():
    outcome = scored(look(2.0, 3.0), zoom(4.25))
    assert outcome.calls == (0.5, 0.75)
    assert outcome.breakdown == {"window": 0.5, "region": 0.75, "price": 0.5, "one": 1.0}
    assert outcome.sampling == pytest.approx(0.625)


def test_a_term_whose_tool_was_not_called_is_left_out():
    outcome = scored(zoom(1.5))
    assert (outcome.sampling, outcome.calls) == (0.5, (0.5,)) and "window" not in outcome.breakdown


def test_a_refused_call_scores_nothing_by_the_terms_of_its_tool():
    outcome = scored(zoom(), RefusedCall("the box is reversed or empty", "zoom"))
    assert (outcome.calls, outcome.breakdown["region"], outcome.sampling) == ((1.0, 0.0), 0.5, 0.5)


def test_the_last_and_the_best_call_may_be_of_any_tool():
    calls = (look(2.0, 3.0), zoom(4.25))
    assert [scored(*calls, how=how).sampling for how in ("last", "max")] == [0.75, 0.75]
    assert scored(*reversed(calls), how="last").sampling == 0.5


def test_who_calls_nothing_gets_nothing_of_every_term():
    outcome = scored()
    assert (outcome.sampling, outcome.calls) == (0.0, ()) and outcome.breakdown["region"] == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>x<zoom>1</zoom><box>1 2 3 4</box><video>y</think><answer>B</answer>", 1.0),
        ("<think><span>1 - 2</span><fps>2</fps><zoom>1</zoom> <box>1</box></think><answer>B</answer>", 1.0),
        ("<think><zoom>1</zoom>x<box>1</box></think><answer>B</answer>", 0.0),
        ("<think><zoom>1</zoom><fps>1</fps></think><answer>B</answer>", 0.0),
        ("<think><box>1</box><zoom>1</zoom></think><answer>B</answer>", 0.0),
        ("<think>x</think><zoom>1</zoom><box>1</box><answer>B</answer>", 0.0),
    ],
)
def test_a_zoom_may_stand_where_a_look_may(text, expected):
    assert output_format(task(), Trajectory((), StopReason.ANSWERED, text)) == expected
