"""Options and their letters."""

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.benchmarks.choices import (
    NO_OPTION,
    choice_example,
    letter_among,
    letter_of_text,
    options_at,
    with_options,
    without_labels,
    written_letters,
)
from envs.benchmarks.metrics import is_right
from envs.benchmarks.official import chooses
from envs.data.rows import UnusableRow
from rl.trajectory import AnswerKind, TimeSpan


def test_a_question_shows_one_option_per_line():
    assert with_options(" What? ", ["red", "blue"]) == "What?\nA. red\nB. blue"
    assert with_options("What?", [" red ", "", "blue"]) == "What?\nA. red\nB.\nC. blue"
    assert with_options("What? A or B\n", []) == "What? A or B"


@pytest.mark.parametrize(
    "options", [["A. cat", "B. dog"], ["(A) cat", "(B) dog"], ["cat", "dog"], ["A. cat", "(B) dog"]]
)
def test_options_that_carry_a_label_get_none_twice(options):
    assert with_options("What?", options) == "What?\nA. cat\nB. dog"


def test_a_choice_is_asked_with_the_video_first_and_the_letter_as_its_answer(videos):
    root = videos("deep/a.mp4")
    example = choice_example(
        "t", "a", root, ("", "deep"), "What?\nA. x\nB. y", "B", windows=[TimeSpan(-1, 2)], group="g"
    )
    assert example.task.question.startswith("<video>\nWhat?\nA. x\nB. y\n")
    assert (example.task.answer, example.task.answer_kind, example.group) == ("B", AnswerKind.LETTER, "g")
    assert example.task.video_path == str(root / "deep" / "a.mp4")
    assert example.windows == (TimeSpan(-1, 2),)  # as annotated
    assert example.task.evidence_span == TimeSpan(0, 2)  # within the clip


def test_a_task_with_several_windows_has_no_single_evidence(videos):
    windows = [TimeSpan(0, 1), TimeSpan(3, 4)]
    assert choice_example("t", "a", videos("a.mp4"), ("",), "What?", "A", windows=windows).task.evidence_span is None


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        (["A. red", "B. blue"], ("red", "blue")),
        (["(A) red", "(B) blue"], ("red", "blue")),
        (["A) red", "B: blue"], ("red", "blue")),
        (["a. red", "b) blue"], ("red", "blue")),
        (["[A] red", "[B] blue"], ("red", "blue")),
        (["Ａ．赤", "Ｂ．青"], ("赤", "青")),
        (["A、红", "（B）蓝"], ("红", "蓝")),
        (["**A.** red", "**B.** blue"], ("red", "blue")),
        (["Option A: red", "Option B: blue"], ("red", "blue")),
        (["A - red", "B – blue"], ("red", "blue")),
        (["A-frame", "B-side"], ("A-frame", "B-side")),
        (["A.", "B."], ("A.", "B.")),  # the letters are the options
        (["red", "blue"], ("red", "blue")),
        (["A. red", "blue"], ("A. red", "blue")),  # no labels, or they would be on all
        (["B. red", "A. blue"], ("B. red", "A. blue")),  # nor out of order
        (["A cat", "B side"], ("A cat", "B side")),
    ],
)
def test_labels_are_taken_off_where_every_option_has_its_own(options, plain):
    assert without_labels(options) == plain


@pytest.mark.parametrize(
    ("answer", "options", "first", "last"),
    [
        ("blue", ["red", "blue"], "B", "B"),
        ("happy", ["sad", "happy", "angry", "happy"], "B", "D"),  # the same text twice: one letter is right
        (" blue ", ["red", "blue"], "B", "B"),
        ("blue", ["A. red", "B. blue"], "B", "B"),  # labels of their own are no part of a text
        ("B. blue", ["A. red", "B. blue"], "B", "B"),
        ("B", ["B", "A"], "A", "A"),  # a text that looks like a letter
        ("", ["red", "", "blue", ""], "B", "D"),  # a blank option is one
        ("Blue", ["Blue ", "Blue"], "B", "B"),  # the one that equals it to the last blank
        ("green", ["red", "blue"], None, None),
        ("RED", ["red", "blue"], None, None),
        ("", ["red", "blue"], None, None),
    ],
)
def test_a_text_is_the_letter_of_its_option_if_there_is_one(answer, options, first, last):
    assert letter_of_text(answer, options) == first
    assert letter_of_text(answer, options, last=True) == last


@pytest.mark.parametrize(
    ("answer", "letter"), [("B", "B"), (" b ", "B"), ("(B)", "B"), ("B.", "B"), ("B. blue", "B"), ("Ｂ", "B")]
)
def test_a_letter_names_an_option(answer, letter):
    assert letter_among(answer, "ABC") == letter


@pytest.mark.parametrize("answer", ["D", "AB", "", "NA", "()", "red"])
def test_a_letter_that_names_none_is_the_rows_fault(answer):
    with pytest.raises(UnusableRow, match="none of A, B, C"):
        letter_among(answer, "ABC")


@pytest.mark.parametrize(
    ("question", "letters"),
    [
        ("What?\n(A) 1\n(B) 2\n(C) 3\n(D) 4", "ABCD"),
        ("What?\nA. 1\nB. 2", "AB"),
        ("What?\n A) 1\n B) 2\n C) 3", "ABC"),
        ("What? (A) 1 (B) 2", "AB"),
        ("Does (A) follow (B)?\n(A) yes\n(B) no\n(C) both", "ABC"),
        ("What?\n(A) 1\n(B) 2\n(C) both (A) and (B)", "ABC"),
        ("I. e. what?\nA. 1\nB. 2", "AB"),
    ],
)
def test_options_written_into_the_question_are_found(question, letters):
    assert written_letters(question) == tuple(letters)


@pytest.mark.parametrize("question", ["What?", "What?\n(A) 1", "What?\n(B) 1\n(C) 2", "A dog. B side.", ""])
def test_a_question_without_options_is_the_rows_fault(question):
    with pytest.raises(UnusableRow, match="does not hold options"):
        written_letters(question)


@pytest.mark.parametrize("options", [None, "AB", ["one"], [], ["a", None], ["a", True], ["a", ["b"]], ["a"] * 27])
def test_options_are_a_list_of_texts(options):
    with pytest.raises(UnusableRow, match="options"):
        options_at({"options": options}, "options")


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (["a", ""], ("a", "")),
        (["", "", "", ""], ("", "", "", "")),
        (["a", " "], ("a", " ")),
        (["two", 2, 2.5], ("two", "2", "2.5")),
    ],
)
def test_a_blank_option_is_one_and_a_number_is_its_digits(options, texts):
    assert options_at({"options": options}, "options") == texts


def test_an_answer_that_is_no_option_is_a_question_in_which_nobody_is_right(videos, says):
    example = choice_example("t", "a", videos("a.mp4"), ("",), "What?", None, options=["x", "y"])
    assert not example.answerable
    for one in (example, replace(example, task=replace(example.task, answer="A"))):
        answers = ("A", "B", "@", NO_OPTION, "", None)
        assert not any(is_right(one, says(answer)) or chooses(one, answer) for answer in answers)


@given(st.text(alphabet="AB(). \n", max_size=200))
def test_no_question_breaks_the_search_for_options(question):
    with contextlib.suppress(UnusableRow):
        assert len(written_letters(question)) >= 2
