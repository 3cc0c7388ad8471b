"""Strict and lenient, beside each other: what an outcome holds, and what a report calls it."""

import pytest

from envs.benchmarks.benchmark import Prediction
from envs.benchmarks.prediction import prediction_of, read_leniently
from rl.evaluation.readings import as_read, both_accuracies, both_readings, in_either, is_detail
from rl.trajectory import AnswerKind, Completion, Segment, StopReason, Trajectory, Turn, VideoTask

TASK = VideoTask("t", "/a.mp4", "Which?\nA. dog runs\nB. cat", "A", AnswerKind.LETTER)
OUTCOME = both_readings(
    {"accuracy": 0.0, "accuracy/short": 0.0, "official/accuracy": 1.0, "unparsed": 1.0},
    {"accuracy": 1.0, "accuracy/short": 1.0, "official/accuracy": 0.0, "unparsed": 0.0},
)


def wrote(text):
    turn = Turn((1,), Completion((2,), (-0.1,), "stop", 0), Segment.REASONING)
    return Trajectory((turn,), StopReason.ANSWERED, text)


def test_an_outcome_holds_both_and_what_scripts_read_once():
    assert OUTCOME == {
        **{"accuracy": 0.0, "accuracy/short": 0.0, "official/accuracy": 1.0, "unparsed": 1.0},
        **{"lenient/accuracy": 1.0, "lenient/accuracy/short": 1.0, "lenient/unparsed": 0.0},
    }


def test_a_report_calls_one_reading_by_plain_names_and_keeps_the_other():
    assert as_read(OUTCOME, "strict") == OUTCOME
    assert as_read(OUTCOME, "lenient") == {
        **{"accuracy": 1.0, "accuracy/short": 1.0, "official/accuracy": 1.0, "unparsed": 0.0},
        **{"strict/accuracy": 0.0, "strict/accuracy/short": 0.0, "strict/unparsed": 1.0},
    }
    assert as_read({"reward_reasoning": 0.5}, "lenient") == {"reward_reasoning": 0.5}  # has one reading only


def test_names_of_the_other_reading():
    assert in_either(["m_avg"]) == ("m_avg", "strict/m_avg", "lenient/m_avg")
    assert is_detail("lenient/accuracy/short") and not is_detail("lenient/accuracy") and not is_detail("accuracy/short")


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        ("<think>T</think><answer>A</answer>", 1.0, 1.0),
        ("<think>T</think><answer>**A**</answer>", 0.0, 1.0),
        ("<think>T</think><answer>A dog runs</answer>", 0.0, 1.0),  # the option's text
        ("<think>B?</think> The answer is (A).<|im_end|>", 0.0, 1.0),  # a stock model writes no tags
        ("<answer>B</answer><answer>A</answer>", 0.0, 1.0),  # it corrects itself
        ("<think>T</think><answer>A or B</answer>", 0.0, 0.0),
        ("<think>A", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_an_answer_by_each_reading(text, strict, lenient):
    assert both_accuracies(TASK, wrote(text)) == {"accuracy": strict, "lenient/accuracy": lenient}


def test_a_prediction_is_read_leniently_as_a_whole():
    bold = prediction_of(wrote("<answer>**A**</answer>"))
    assert bold == Prediction("**A**", (), "**A**")
    assert read_leniently(bold, TASK).answer == "A"
    untagged = prediction_of(wrote("Answer: A"))
    assert (untagged.answer, read_leniently(untagged, TASK).answer) == (None, "A")
    assert read_leniently(None, TASK) is None
    for unread in ("<think>A", "A or B, who knows", "<answer>A or B</answer>"):  # the same: nothing is scored twice
        assert read_leniently(prediction_of(wrote(unread)), TASK) == prediction_of(wrote(unread))
