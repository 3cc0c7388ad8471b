"""What a finished trajectory says: the last answer, and the windows it was granted."""

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from envs.benchmarks.prediction import last_answer, prediction_of
from rl.trajectory import Completion, MalformedCall, RetrievalCall, Segment, StopReason, TimeSpan, Trajectory, Turn
from tests.calibration import within

PIECES = st.lists(st.sampled_from(["<answer>", "</answer>", "B", " ", "<", "answer>"]), max_size=12).map("".join)


def trajectory(text, *calls, stop=StopReason.ANSWERED):
    completion = Completion((2,), (-0.1,), "stop", 0)
    turns = tuple(Turn((1,), completion, Segment.SAMPLING, call) for call in calls)
    return Trajectory((*turns, Turn((3,), completion, Segment.REASONING)), stop, text)


def call(start_s, end_s, granted_end_s):
    return RetrievalCall(TimeSpan(start_s, end_s), 4.0, TimeSpan(start_s, granted_end_s), 4.0, num_frames=4)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>T</think><answer>B</answer>", "B"),
        ("<answer> B \n</answer>", "B"),
        ("<answer>A</answer> no: <answer>B</answer>", "B"),  # a policy that corrects itself
        ("<answer>A</answer> no: <answer>B", "A"),  # the second is not closed
        ("<answer>A<answer>B</answer>", "B"),
        ("<answer>A</answer></answer>", "A"),
        ("</answer><answer>A</answer>", "A"),
        ("<answer></answer>", ""),
        ("<answer>A", None),
        ("A</answer>", None),
        ("</answer>A<answer>", None),
        ("B", None),
        ("", None),
    ],
)
def test_the_last_well_formed_answer_counts(text, answer):
    assert last_answer(text) == answer
    assert prediction_of(trajectory(text)).answer == answer


@given(PIECES)
@example("<answer>A</answer><answer></answer>")
def test_the_last_answer_is_the_last_pair_without_a_tag_inside(text):
    """An oracle: every opening tag, its next closing tag; the pairs with nothing between are complete; the last one."""
    bodies = []
    for start in range(len(text)):
        if text.startswith("<answer>", start):
            body, closed, _ = text[start + len("<answer>") :].partition("</answer>")
            if closed and "<answer>" not in body:
                bodies.append(body.strip())

    assert last_answer(text) == (bodies[-1] if bodies else None)


@given(st.text())
def test_no_text_breaks_it(text):
    last_answer(text)


@pytest.mark.parametrize("text", ["<answer>" * 200_000, "</answer>" * 200_000, "<answer>x</answer>" * 100_000])
def test_a_long_text_is_read_in_one_go(text):
    started = time.perf_counter()
    last_answer(text)
    assert time.perf_counter() - started < within(1)  # milliseconds; with a search from every tag it would be minutes


def test_windows_are_the_granted_ones_in_order():
    said = prediction_of(trajectory("<answer>B</answer>", call(2, 60, 30), MalformedCall("reversed"), call(4, 5, 5)))
    assert said.windows == (TimeSpan(2, 30), TimeSpan(4, 5))


def test_a_truncated_trajectory_says_what_it_had_said():
    assert prediction_of(trajectory("<answer>B</answer> and", stop=StopReason.TRUNCATED)).answer == "B"
    assert prediction_of(trajectory("<think>", stop=StopReason.TRUNCATED)).answer is None


def test_a_video_that_cannot_be_read_is_a_missing_prediction():
    assert prediction_of(trajectory("", stop=StopReason.VIDEO_ERROR)) is None
