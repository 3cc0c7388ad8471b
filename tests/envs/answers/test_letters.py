"""The letter an answer chooses, strictly; the options a question holds."""

import pytest

from envs.answers.letters import read_letter, written_options


@pytest.mark.parametrize("text", ["B", "b", "(B)", "(b)", "B.", "B. a red ball", "B) red", "(B) red", "B: red", " B\n"])
def test_a_letter_in_its_usual_forms(text):
    assert read_letter(text) == "B"


@pytest.mark.parametrize(
    "text", ["", "ball", "A dog runs", "B, C", "BC", "A/B", "(B", "the answer is B", "5", "ſ", "ß."]
)
def test_not_a_choice(text):
    assert read_letter(text) is None


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("<video>\nWhat?\nA. red\nB. blue\nAnswer with a letter.", {"A": "red", "B": "blue"}),
        ("What?\n(A) red \n (B) blue", {"A": "red", "B": "blue"}),
        ("What?\nA) red\nB: blue", {"A": "red", "B": "blue"}),
        ("What is red?", {}),
    ],
)
def test_options_on_lines_of_their_own(question, options):
    assert written_options(question) == options
