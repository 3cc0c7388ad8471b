"""Answers are read from the body of <answer> alone, and compared by kind."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.answer import answer, answer_body, normalised
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
    normalised(text), answer_body(text)


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


def test_a_pile_of_marks_on_a_letter_is_cut_at_what_scripts_use():
    assert normalised("e\u0301" + "\u0323" * 29) == normalised("e" + "\u0301" + "\u0323" * 100_000)
    assert normalised("cafe\u0301 au lait") == "café au lait"


@pytest.mark.parametrize(("reference", "kind"), [("red", "letter"), ("soon", "span"), ("...", "open")])
def test_a_reference_that_cannot_be_read_is_the_rows_fault(task, trajectory_of, reference, kind):
    with pytest.raises(ValueError, match=r"task t: the reference answer"):
        answer(task(reference, AnswerKind(kind)), trajectory_of())
