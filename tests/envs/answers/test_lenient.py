"""What is unmistakable is read, whatever its form; what is not stays unread."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.answers.comparison import score_answer, score_leniently
from envs.answers.lenient import final_text, in_strict_form, read_letter_leniently
from envs.answers.letters import read_letter
from rl.trajectory import AnswerKind

QUESTION = "<video>\nWhat?\nA. dog runs\nB. a red ball\nC. The man did not move\nD. cat"


@pytest.mark.parametrize(
    "answer",
    [
        *("B", "b", "(B)", "B.", "B) text", "B: text", "B. red", "B a red ball", "B - a red ball", "B,", "B!"),
        *("**B**", "*B*", "__B__", "`B`", '"B"', "“B”", "**B.** a red ball", "**B. a red ball**", "[B]", "{B}", "<B>"),
        *("\\boxed{B}", "$\\boxed{B}$", "\\boxed{\\text{B}}", "\\(B\\)", "Final answer: $\\boxed{\\text{B}}$."),
        *("Answer: B", "answer : b", "**Answer:** B", "Answer: **B**", "Answer: (B) a red ball", "ANSWER = B"),
        *("the answer is B", "The answer is: B.", "The correct answer is (B).", "My final answer is **B**"),
        *("So, the answer is B", "The best option is B", "Option B", "option (B) is right", "B is the correct answer"),
        *("The correct choice is option B.", "Answer B", "Answer - B", "Ans. B", "Ans: (B)", "It's B.", "I choose B"),
        *("So finally, the answer is $\\boxed{B}$.", "B, a red ball", "B、红球", "<b>B</b>", "```\nB\n```", "Ответ: B"),
        *("B (a red ball)", "\\boxed{B. a red ball}", "Answer:\nB", "Answer: B\nThe ball is not blue.", "option b"),
        *("Based on the video, the answer is B.", "The answer is B because A is not shown.", "The answer is B, not C"),
        *("Ｂ", "（Ｂ）", "Ｂ．", "Ⓑ", "B。", "B।", "B۔", "【B】", "「B」", "答案：B", "答案是B。", "正确答案是 B"),
        *("B\n\nThe ball does not move.", "The ball is red.\n\nB"),
    ],
)
def test_an_unmistakable_letter_is_read(answer):
    assert read_letter_leniently(answer) == "B"
    assert read_letter(in_strict_form(answer, AnswerKind.LETTER)) == "B"


@pytest.mark.parametrize(
    "answer",
    [
        *("", "A or B", "B or C", "B and C", "B & C", "A, B", "A/B", "A B C D", "C B", "AB", "A\nB\nC\nD"),
        *("not B", "It is not B", "B is wrong", "B is not right", "the answer is not B", "the answer isn't B", "B?"),
        *("The answer is B or C", "The answer is either B or C", "option B or option C", "Answer: A, B"),
        *(
            "I don't think the answer is B",
            "The answer is B. No, the answer is C",
            "Answer: A\nAnswer: B",
            "**A** or **B**",
        ),
        *(
            "As I said",
            "A dog runs",
            "I see a dog",
            "the answer is A dog",
            "Be careful",
            "none",
            "Both",
            "В",
            "5",
            "B-C",
        ),
        "B " + "x" * 5_000,
    ],
)
def test_what_is_not_unmistakable_stays_unread(answer):
    assert read_letter_leniently(answer) is None
    assert in_strict_form(answer, AnswerKind.LETTER) == answer


def test_what_is_strict_stays_as_it_is_read():
    assert read_letter_leniently("I") == "I"


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("A dog runs", "A"), ("A red ball", None), ("C The man did not move", "C"), ("C He did not", None), ("E x", None)],
)
def test_the_options_tell_an_article_from_a_choice(answer, letter):
    assert read_letter_leniently(answer, QUESTION) == letter


def test_an_article_that_another_option_begins_with_is_no_choice():
    assert read_letter_leniently("A dog runs", "What?\nA. dog runs\nB. A dog runs") is None


@pytest.mark.parametrize(
    ("answer", "window"),
    [
        ("[3.0, 8.5]", "3.00 - 8.50"),
        ("(3, 8.5)", "3.00 - 8.50"),
        ("[3 - 8.5]", "3.00 - 8.50"),
        ("<3.0, 8.5>", "3.00 - 8.50"),
        ("00:03 - 00:08", "3.00 - 8.00"),
        ("00:03.5 to 01:08", "3.50 - 68.00"),
        ("0:00:03 – 0:01:08.5", "3.00 - 68.50"),
        ("1:02:03 - 1:02:09", "3723.00 - 3729.00"),
        ("**3 - 8**", "3.00 - 8.00"),
        ("Answer: 3 - 8 s", "3.00 - 8.00"),
        ("between 3 and 8 seconds", "3.00 - 8.00"),
        ("3 ~ 8", "3.00 - 8.00"),
        ('{"start": 3.0, "end": 8.5}', "3.00 - 8.50"),
        ("Start time: 0:03; end time: 0:08", "3.00 - 8.00"),
        ("1 - 2 minutes", "60.00 - 120.00"),
        ("３秒 - ８秒", "3.00 - 8.00"),
        ("The given query happens in 24.3 - 30.4 seconds.", "24.30 - 30.40"),
        ("It happens from 3 to 8 s, in the kitchen", "3.00 - 8.00"),
        *[(text, text) for text in ("3 - 8", "3.0–8.5", "3.0 − 8.5", "1 second - 3 seconds", "from 3 to 8 seconds")],
    ],
)
def test_an_unmistakable_window_is_read(answer, window):
    assert in_strict_form(answer, AnswerKind.SPAN) == window


@pytest.mark.parametrize(
    "answer",
    [
        *("3", "3, 8", "3 and 8", "8 - 3", "[8, 3]", "not 3 - 8", "3 - 8 - 9", "3 - 8 or 9 - 12", "2024-01-05"),
        *("00:99 - 01:00", "1:61:00 - 2:00:00", "-3 - 8", "3 - 8x", "v3 - 8", "in the middle", ""),
        "start: 8, end: 3",
    ],
)
def test_a_window_that_is_not_unmistakable_stays_unread(answer):
    assert in_strict_form(answer, AnswerKind.SPAN) == answer


@pytest.mark.parametrize(
    ("answer", "kind", "reference"),
    [
        ("**3**", "number", "3"),
        ("\\boxed{3}", "number", "3"),
        ("$3$", "number", "3"),
        ("three", "number", "3"),
        ("3 seconds", "number", "3"),
        ("3", "number", "3 s"),
        ("The answer is 3.", "number", "3"),
        ("Answer: 3-1", "score", "3-1"),
        ("Answer: a red ball.", "open", "red ball"),
        ("\\boxed{\\text{red ball}}", "open", "red ball"),
    ],
)
def test_other_kinds_are_read_without_what_is_around_them(answer, kind, reference):
    kind = AnswerKind(kind)
    assert score_leniently(answer, reference, kind) == 1.0


@pytest.mark.parametrize("answer", ["not 3", "3 or 4", "3 %", "3 million", "about 3", "third"])
def test_a_number_that_is_not_unmistakable_stays_unread(answer):
    assert score_leniently(answer, "3", AnswerKind.NUMBER) == 0.0


@given(st.text() | st.text("AB(). \n*answeris:"), st.sampled_from(AnswerKind))
def test_the_lenient_reading_reads_all_that_the_strict_one_reads(text, kind):
    reference = {"letter": "B", "span": "3 - 8", "number": "3", "score": "3-1", "open": "red"}[kind]
    strict = score_answer(text, reference, kind)
    assert score_leniently(text, reference, kind) >= strict
    assert kind is not AnswerKind.LETTER or read_letter(text) in (None, read_letter_leniently(text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("B<|im_end|>", "B"),
        ("<think>Is it A?</think>\nB.", "B."),
        ("<think>Look.<span>1 - 2</span><fps>3</fps><video>Now.</think> B", "B"),
        ("<think></think><answer>B", "B"),
        ("<think></think>B</answer>", "B"),
        ("<think>It is B", ""),
        ("", ""),
    ],
)
def test_what_is_said_in_the_end_where_there_are_no_tags(text, said):
    assert final_text(text) == said
