"""Answers are read from the body of <answer> alone, and compared by kind."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.answer import answer, answer_body
from rl.trajectory import AnswerKind


def test_only_the_answer_body_counts(task, trajectory_of):
    assert answer(task("B"), trajectory_of("<think>A or C</think><answer>(B) red</answer>")) == 1.0
    assert answer(task("B"), trajectory_of("<think>B B B</think><answer>C</answer>")) == 0.0
    assert answer(task("B"), trajectory_of("B")) == 0.0


def test_several_answers_are_no_answer(task, trajectory_of):
    assert answer(task("B"), trajectory_of("<answer>A</answer><answer>B</answer>")) == 0.0
    assert answer_body("<answer>A<answer>B</answer>") is None
    assert answer_body("</answer>B<answer>") is None
    assert answer_body("<answer>B") is None


@given(st.text())
def test_no_text_breaks_a_parser(text):
    answer_body(text)


def test_a_span_earns_its_iou(task, trajectory_of):
    asked = task("3 - 6", AnswerKind.SPAN)

    assert answer(asked, trajectory_of("<answer>3.0 - 6.0</answer>")) == 1.0
    assert answer(asked, trajectory_of("<answer>2 - 5</answer>")) == pytest.approx(0.5)
    assert answer(asked, trajectory_of("<answer>in the middle</answer>")) == 0.0


def test_an_open_answer_is_compared_after_normalisation(task, trajectory_of):
    asked = task("A red ball.", AnswerKind.OPEN)

    assert answer(asked, trajectory_of("<answer>the RED  ball</answer>")) == 1.0
    assert answer(asked, trajectory_of("<answer>a red balloon</answer>")) == 0.0
    assert answer(asked, trajectory_of("<answer></answer>")) == 0.0


@pytest.mark.parametrize(("reference", "kind"), [("red", "letter"), ("soon", "span"), ("...", "open")])
def test_a_reference_that_cannot_be_read_is_the_rows_fault(task, trajectory_of, reference, kind):
    with pytest.raises(ValueError, match=r"task t: the reference answer"):
        answer(task(reference, AnswerKind(kind)), trajectory_of())


def test_the_lenient_reading_is_by_key(task, trajectory_of):
    bold = trajectory_of("<answer>**B**</answer>")

    assert answer(task("B"), bold) == 0.0
    assert answer(task("B"), bold, reading="lenient") == 1.0
    with pytest.raises(ValueError, match="reading must be one of strict, lenient"):
        answer(task("B"), bold, reading="loose")


@pytest.mark.parametrize(
    ("kind", "reference", "right", "wrong"),
    [
        ("number", "1.5", "1.50", "15"),
        ("number", "25 %", "25%", "25"),
        ("score", "3-1", "3 : 1", "1-3"),
        ("open", "C++", "c++", "C"),
    ],
)
def test_numbers_scores_and_marks_are_compared_by_what_they_say(task, trajectory_of, kind, reference, right, wrong):
    asked = task(reference, AnswerKind(kind))

    assert answer(asked, trajectory_of(f"<answer>{right}</answer>")) == 1.0
    assert answer(asked, trajectory_of(f"<answer>{wrong}</answer>")) == 0.0
