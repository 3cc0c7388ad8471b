"""References: whatever is let pass earns its full reward; what is not says why, and what to write."""

import csv
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.answers.comparison import score_answer, score_leniently
from envs.answers.reference import UnusableReference, read_reference
from rl.trajectory import AnswerKind


@pytest.mark.parametrize(
    ("answer", "reference", "kind"),
    [
        *[(text, text, "letter") for text in ("B", "a", "(B)", "(b)", "B. red", "b. y", "b) y", "B) red", "(B) red")],
        *[(text, "B", "letter") for text in ("<answer>B</answer>", "<answer> B </answer>\n", "**B**", "Answer: B")],
        *[(text, "B", "letter") for text in ("\\boxed{B}", "Ｂ", "B。", '"B"', "The answer is B.")],
        *[(text, "B", "letter") for text in ("[B]", "【B】", "Option B", "option (B)", "{B}", "Answer B")],
        *[(text, text, "span") for text in ("0.00 - 8.00", "3-8.5", "3 - 8 seconds", "3s - 8s", "1.0 to 3.0")],
        *[(text, text, "span") for text in ("1.0 – 3.0", "1.0 — 3.0", "1 second - 3 seconds", "from 1 to 3 s", "1-3")],
        ("12.333333333333334 - 20.1", "12.333333333333334 - 20.1", "span"),
        *[(text, "1.00 - 3.00", "span") for text in ("[1.0, 3.0]", "(1, 3)", "00:01 - 00:03")],
        *[(text, text, "number") for text in ("3", "1.5", "-5", "25 %", "$1.50", "1/2", "1,000", "3 seconds")],
        *[(text, text, "open") for text in ("A dog runs", "red", "BB", "3 - ", "from 3", "-1 - 2", "C++", "10:30")],
        ("$\\boxed{\\text{a red ball}}$", "a red ball", "open"),
        *[(text, text, "open") for text in ("007", "1.000,5", "B a red ball", "C major", "3 apples", "+", "😀")],
    ],
)
def test_the_kind_of_an_answer_is_read_from_its_text(answer, reference, kind):
    assert read_reference(answer) == (reference.strip(), kind)


@pytest.mark.parametrize(
    ("answer", "kind", "reference"),
    [
        ("1-3", "score", "1-3"),
        ("3-1", "score", "3-1"),
        ("3 : 1", "score", "3 : 1"),
        ("1-3", "open", "1-3"),
        ("3-1", "open", "3-1"),
        ("B", "open", "B"),
        ("a", "open", "a"),
        ("05", "number", "05"),
        ("00:01 - 00:03", "span", "1.00 - 3.00"),
        ("The answer is B because it rains", "letter", "B"),
    ],
)
def test_nothing_is_guessed_where_the_row_says_the_kind(answer, kind, reference):
    assert read_reference(answer, AnswerKind(kind)) == (reference, kind)
    assert score_answer(reference, reference, AnswerKind(kind)) == 1.0


@pytest.mark.parametrize(
    ("answer", "kind", "reason"),
    [
        ("3-1", None, '\'3-1\'; if it is none, say so in the row: "answer_kind": "score" or "open"'),
        ("[5, 3]", None, "reversed or empty as a window"),
        ("...", None, "'...' says nothing"),
        ("<answer></answer>", None, "says nothing"),
        ("red", "letter", "'red' is not a letter"),
        ("soon", "span", "'soon' is not a window"),
        ("3 - 1", "span", "forward in time"),
        ("many", "number", "'many' is not a number"),
        ("1.000,5", "number", "not a number, as 1000.5"),
        ("10:30 h", "score", "not a score"),
        ("B<|im_end|>", None, "holds <|im_end|>, which a policy cannot write"),
        ("a <video> of it", None, "holds <video>"),
        ("<answer>A</answer><answer>B</answer>", None, "holds </answer>"),
    ],
)
def test_a_reference_that_no_policy_can_match_is_refused(answer, kind, reason):
    with pytest.raises(UnusableReference) as refused:
        read_reference(answer, kind and AnswerKind(kind))
    assert reason in str(refused.value)


PIECES = st.sampled_from(
    [
        *(
            "A",
            "b",
            "(C)",
            ". ",
            ") ",
            " - ",
            "-",
            "–",
            " to ",
            "3",
            "8.5",
            "1,000",
            "%",
            "$",
            ":",
            "/",
            "²",
            "½",
            "°C",
        ),
        *("<answer>", "</answer>", "**", "\\boxed{", "}", "Answer: ", "The answer is ", " red", "the ", "...", "。"),
        *("Ｂ", " s", "'", '"'),
    ]
)
REFERENCES = st.lists(PIECES, min_size=1, max_size=5).map("".join) | st.text(max_size=8)


@given(REFERENCES, st.none() | st.sampled_from(AnswerKind))
def test_whatever_is_let_pass_earns_its_full_reward(answer, kind):
    try:
        reference, read_as = read_reference(answer, kind)
    except UnusableReference as refusal:
        assert 10 < len(str(refusal)) < 400
        return
    assert kind in (None, read_as)
    assert score_answer(reference, reference, read_as) == 1.0
    assert score_leniently(reference, reference, read_as) == 1.0
    assert read_reference(reference, read_as) == (reference, read_as)


@pytest.mark.real_data
def test_the_answers_of_real_annotations_earn_their_full_reward(real_data_dir):
    with (real_data_dir / "nextgqa" / "val.csv").open(newline="") as file:
        texts = {row["answer"] for row in csv.DictReader(file)}
    for path in (real_data_dir / "mlvu").glob("*.json"):
        texts |= {row["answer"] for row in json.loads(path.read_text())} - {""}
    kinds = Counter()
    for text in texts:
        reference, kind = read_reference(text)
        assert reference == text.strip() and score_answer(text, reference, kind) == 1.0
        kinds[kind] += 1
    assert kinds == {"open": 3837, "number": 9}
