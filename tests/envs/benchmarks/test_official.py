"""`official/…`: what the authors' scripts print for the same predictions, to the digit.

The scripts are told again here in plain loops, each from the file that its benchmark names; the numbers of the first
test are worked by hand.
"""

import json
import re
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.benchmarks.benchmark import Example, Prediction
from envs.benchmarks.official import before_bracket, first_character, first_letter
from envs.benchmarks.registry import resolve
from rl.trajectory import AnswerKind, TimeSpan, VideoTask

MISSING = "(missing)"  # in place of a response


@pytest.mark.parametrize(
    ("response", "anywhere", "first", "bracketed"),
    [  # Video-MME and LongVideoBench; LVBench and MotionBench; MLVU
        ("B", "B", "B", "B"),
        ("b", None, "b", "b"),
        ("B.", "B", "B", "B."),
        ("B. blue", "B", "B", "B. blue"),
        ("(B)", "B", "B", "B"),
        ("(B) blue", "B", "B", "B"),
        ("B) blue", "B", "B", "B"),
        ("(b) blue", None, "b", "b"),
        (" B\n", "B", "B", " B\n"),
        ("B, C", "B", "B", "B, C"),
        ("B and (C)", "B", "C", "C"),
        ("The answer is B", "B", "T", "The answer is B"),
        ("The best answer is (C) because", "C", "C", "C"),
        ("Answer: B", "A", "A", "Answer: B"),
        ("An apple", "A", "A", "An apple"),
        ("blue", None, "b", "blue"),
        ("option b, no: C", "C", "o", "option b, no: C"),
        ("F", None, "F", "F"),
        ("1", None, "1", "1"),
        ("", None, "", ""),
        (")", None, "", ""),
        ("()", None, "", "("),
        ("((B))", "B", "", "B"),
        ("**B**", "B", "*", "**B**"),
    ],
)
def test_a_response_is_read_as_each_script_reads_it(response, anywhere, first, bracketed):
    assert first_letter(response, "ABCD") == anywhere
    assert first_character(response) == first
    assert before_bracket(response) == bracketed


# files of six questions; three of them of one group; their right letters:
RIGHT = "ABCDAB"
GROUP = {
    "video_mme": ("short", "short", "short", "medium", "medium", "long"),
    "lvbench": ("reasoning", "reasoning", "reasoning", "summarization", "summarization", "reasoning; summarization"),
    "longvideobench": ("15", "15", "15", "60", "60", "3600"),
    "motionbench": ("Camera Motion",) * 3 + ("Action Order",) * 3,
    "mlvu": ("plotQA", "plotQA", "plotQA", "needle", "needle", "count"),
    "favor_bench": ("AS", "AS", "AS", "CM", "CM", "NSM"),
}
OPTIONS = ["red", "blue", "green", "pale green"]
ASKED = "Which?\n(A) red\n(B) blue\n(C) green\n(D) pale green"


def rows_of(name):
    """(file name, rows) in the authors' format; MotionBench's has two withheld questions more."""
    given = list(enumerate(zip(RIGHT, GROUP[name], strict=True)))
    match name:
        case "video_mme":
            return "x.jsonl", [
                {"videoID": "v", "question_id": f"q{i}", "question": "Which?", "options": OPTIONS, "answer": right}
                | {"duration": group}
                for i, (right, group) in given
            ]
        case "lvbench":
            qa = [
                {"uid": f"q{i}", "question": ASKED, "answer": right, "question_type": group.split("; ")}
                for i, (right, group) in given
            ]
            return "x.jsonl", [{"key": "v", "qa": qa}]
        case "longvideobench":
            return "x.json", [
                {"id": f"q{i}", "video_path": "v", "question": "Which?", "candidates": OPTIONS}
                | {"correct_choice": "ABCD".index(right), "duration_group": int(group)}
                for i, (right, group) in given
            ]
        case "motionbench":
            withheld = [(6, ("NA", "Action Order")), (7, ("NA", "Camera Motion"))]
            return "x.jsonl", [
                {
                    "video_path": "v",
                    "question_type": group,
                    "qa": [{"uid": f"q{i}", "question": ASKED, "answer": right}],
                }
                for i, (right, group) in given + withheld
            ]
        case "mlvu":
            return "x.json", [
                {"video": "v", "question": "Which?", "candidates": OPTIONS, "answer": OPTIONS["ABCD".index(right)]}
                | {"question_type": group}
                for right, group in zip(RIGHT, GROUP[name], strict=True)
            ]
        case "favor_bench":
            return "x.json", [
                {"video_name": "v", "question_key": f"q{i}", "question": "Which?", "options": OPTIONS}
                | {"correct_answer": OPTIONS["ABCD".index(right)], "task_type": group}
                for i, (right, group) in given
            ]


@pytest.fixture(scope="module")
def examples_of(tmp_path_factory):
    """The benchmark's examples, and how many questions of the file are none; read once."""
    read = {}

    def examples(name):
        if name not in read:
            folder = tmp_path_factory.mktemp(name)
            (folder / "v.mp4").touch()
            file, rows = rows_of(name)
            text = json.dumps(rows) if file.endswith("json") else "\n".join(map(json.dumps, rows))
            (folder / file).write_text(text)
            loaded = resolve(name).read(folder / file, folder)
            assert len(loaded.examples) == 6
            read[name] = loaded.examples, len(loaded.rejected)
        return read[name]

    return examples


def printed(name, examples, left_out, responses):
    """The table of `official/…` numbers: what our metrics come to, as the script would print it."""
    benchmark, values, groups = resolve(name), defaultdict(list), defaultdict(list)
    for example, response in zip(examples, responses, strict=True):
        prediction = None if response == MISSING else Prediction(response)
        for metric, value in benchmark.score(example, prediction).items():
            values[metric].append(value)
            groups[metric].append(example.group)
    for metric in benchmark.over_file:
        values[metric] += [0.0] * left_out
        groups[metric] += [""] * left_out
    return {
        metric.removeprefix("official/"): benchmark.published.digits(metric, values[metric], groups[metric])
        for metric in values
        if metric.startswith("official/")
    }


RESPONSES = ("A", "b", "(C) green", "The answer is D", MISSING, "")
#            right; lower case; right; led in: right for some; not there; nothing said


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        # letters A, none, C, D, missing, none: three answers with a letter, all right
        ("video_mme", {"accuracy": "100.0", "accuracy/short": "100.0", "accuracy/medium": "100.0"}),
        # A, b, C, T, missing, "": two of five
        ("lvbench", {"accuracy": "0.4", "accuracy/reasoning": "0.5", "accuracy/summarization": "0.0"}),
        # A, drawn, C, D, missing, drawn: (3 + 2/4) / 6; of the first three 2.25 / 3
        (
            "longvideobench",
            {"accuracy": "0.58333", "accuracy/15": "0.75", "accuracy/60": "0.5", "accuracy/3600": "0.25"},
        ),
        # A, b, C, T, missing, "": two of five, and of eight in the file
        (
            "motionbench",
            {
                **{"accuracy": "0.25", "answered/accuracy": "0.4"},
                **{"accuracy/Camera_Motion": repr(2 / 3), "accuracy/Action_Order": "0.0"},
            },
        ),
        # A, b, C, sentence, missing, "": plotQA two of three; the mean over three tasks
        (
            "mlvu",
            {
                "m_avg": repr((0 + 0 + 2 / 3 * 100) / 3),
                **{"accuracy/plotQA": repr(2 / 3 * 100), "accuracy/needle": "0.0", "accuracy/count": "0.0"},
            },
        ),
        # only "(C) green" has the right option's text in it
        (
            "favor_bench",
            {"accuracy": "16.67", "accuracy/AS": "33.33", "accuracy/CM": "0.0", "accuracy/NSM": "0.0"},
        ),
    ],
)
def test_the_digits_are_those_of_the_script(examples_of, name, by_hand):
    assert printed(name, *examples_of(name), RESPONSES) == by_hand


def test_our_own_numbers_keep_their_names_and_values(examples_of):
    for name in GROUP:
        examples, _ = examples_of(name)
        for example, answer in zip(examples, ("a", "(B)", "C.", "D. x", "b", "none"), strict=True):
            values = resolve(name).score(example, Prediction(answer))
            assert values["accuracy"] == float(answer in ("a", "(B)", "C.", "D. x"))
            assert values["unparsed"] == float(answer == "none")


def test_a_lead_in_is_taken_out_where_the_authors_list_has_its_commas(examples_of):
    second, third = (Prediction(f"Best {what}: C") for what in ("answer", "option"))
    for name, read in (("video_mme", "B"), ("longvideobench", "C")):  # in Video-MME's list two commas are missing
        examples, _ = examples_of(name)
        assert {x for x, one in zip(RIGHT, examples, strict=True) if official(name, one, second)} == {read}
        assert official(name, examples[RIGHT.index(read)], third) == 1.0


def official(name, example, prediction):
    return resolve(name).score(example, prediction)["official/accuracy"]


def test_an_answer_without_tags_is_the_response_too(examples_of):
    stock = Prediction(None, (), "The answer is (A).")
    for name in ("video_mme", "lvbench", "longvideobench"):
        values = resolve(name).score(examples_of(name)[0][0], stock)
        assert (values["official/accuracy"], values["accuracy"], values["unparsed"]) == (1.0, 0.0, 1.0)


def test_a_text_that_is_part_of_another_options_is_not_named_by_that(examples_of):
    green = examples_of("favor_bench")[0][RIGHT.index("C")]
    answers = ("green", "It is GREEN.", "pale green", "green, or pale green", "blue")
    assert [official("favor_bench", green, Prediction(answer)) for answer in answers] == [1, 1, 0, 0, 0]
    pale = examples_of("favor_bench")[0][RIGHT.index("D")]
    assert [official("favor_bench", pale, Prediction(answer)) for answer in answers] == [0, 0, 1, 1, 0]


# the scripts, told again


def video_mme(rows, left_out):
    """Of each length and of all: 100 * right / read, the first of A-D in a response; " .1f"."""
    read, right = defaultdict(int), defaultdict(int)
    for group, answer, response in rows:
        if response == MISSING:
            continue
        response = response.strip()
        for lead_in in ("The best answer is", "The correct answer is", "The answer is", "The answer"):
            response = response.replace(lead_in, "")
        response = response.replace("The best option isThe correct option is", "").replace(
            "Best answer:Best option:", ""
        )
        found = re.search("[ABCD]", response)
        if found:
            for key in ("accuracy", f"accuracy/{group}"):
                read[key] += 1
                right[key] += found[0] == answer
    return {key: f"{100 * right[key] / read[key]:.1f}" for key in read}


def polished(response):
    response = response.strip().split(")")[0].strip()
    if "(" in response:
        response = response.split("(")[1].strip()
    response = response.split(" ")[0]
    return response[0] if response else response


def lvbench(rows, left_out):
    """right / predictions, and per category."""
    total, right = defaultdict(int), defaultdict(int)
    for group, answer, response in rows:
        if response != MISSING:
            for key in ("accuracy", *(f"accuracy/{name}" for name in group.split("; "))):
                total[key] += 1
                right[key] += polished(response) == answer
    return {key: str(float(right[key]) / total[key]) for key in total}


def motionbench(rows, left_out):
    """right / (questions, but for answered withheld ones), right / predictions, and per category of the answered."""
    total, right, questions, answered = defaultdict(float), defaultdict(float), left_out, 0
    for group, answer, response in rows:
        questions += 1
        if response != MISSING:
            answered += 1
            for key in ("", f"accuracy/{group.replace(' ', '_')}"):
                total[key] += 1
                right[key] += polished(response) == answer
    table = {key: str(right[key] / total[key]) for key in total if key}
    answered_accuracy = {"answered/accuracy": str(right[""] / answered)} if answered else {}
    return table | {"accuracy": str(right[""] / questions)} | answered_accuracy


def mlvu(rows, left_out):
    """100 * right / questions of each task, and the mean over tasks, in the order of the script's table."""
    total, right = defaultdict(int), defaultdict(int)
    for group, answer, response in rows:
        said = "" if response == MISSING else response
        total[group] += 1
        if ")" in said:
            said = said[said.index(")") - 1 : said.index(")")]
        right[group] += said == answer and response != MISSING
    table, added = {}, 0
    for task in ("count", "ego", "needle", "order", "plotQA", "anomaly_reco", "topic_reasoning"):
        if task in total:
            table[f"accuracy/{task}"] = right[task] / total[task] * 100
            added += table[f"accuracy/{task}"]
    return {key: str(value) for key, value in (table | {"m_avg": added / len(table)}).items()}


def longvideobench(rows, left_out):
    """The first of A-E in a response; where there is none, the average of a draw. Rounded to five places."""
    total, right = defaultdict(int), defaultdict(float)
    for group, answer, response in rows:
        read = "" if response == MISSING else response.strip()
        for lead_in in ("The best answer is", "The correct answer is", "The answer is", "The answer"):
            read = read.replace(lead_in, "")
        for lead_in in ("The best option is", "The correct option is", "Best answer:", "Best option:"):
            read = read.replace(lead_in, "")
        found = re.search("[ABCDE]", read)
        worth = 0.0 if response == MISSING else float(found[0] == answer) if found else 0.25
        for key in ("accuracy", f"accuracy/{group}"):
            total[key] += 1
            right[key] += worth
    return {key: str(round(right[key] / total[key], 5)) for key in total}


def favor_bench(rows, left_out):
    """round(100 * right / questions, 2): the right option's text is in the output, that of none which contains it."""
    total, right = defaultdict(int), defaultdict(int)
    for group, answer, response in rows:
        text, said = OPTIONS["ABCD".index(answer)], response.lower()
        judged = text in said and not any(text in other and other != text and other in said for other in OPTIONS)
        for key in ("accuracy", f"accuracy/{group}"):
            total[key] += 1
            right[key] += judged and response != MISSING
    return {key: str(round(right[key] / total[key] * 100, 2)) for key in total}


SCRIPTS = {f.__name__: f for f in (video_mme, lvbench, motionbench, mlvu, longvideobench, favor_bench)}
PIECES = st.sampled_from(
    [*"ABCDEabc(). \n", "The answer is", "Best answer:", "Best option:", "The best option is", "The ", "pale ", "green"]
)
RESPONSE = st.just(MISSING) | st.sampled_from("ABCD") | st.lists(PIECES, max_size=5).map(lambda p: "".join(p).strip())


@pytest.mark.parametrize("name", SCRIPTS)
@settings(max_examples=60)
@given(responses=st.lists(RESPONSE, min_size=6, max_size=6))
def test_any_predictions_print_the_digits_that_the_script_prints(examples_of, name, responses):
    examples, left_out = examples_of(name)
    rows = list(zip(GROUP[name], RIGHT, responses, strict=True))
    assert printed(name, examples, left_out, responses) == SCRIPTS[name](rows, left_out)


# grounded questions and moments: our numbers are the script's, and print its digits

EVIDENCE = (TimeSpan(0, 4), TimeSpan(10, 20))
LOOKS = ((10, 20), (12, 14), (0, 20), (25, 35), (11, 16), (3, 3), None)
#        IoU     1     .2      .5       0        .5      0    IoP 1 1 .5 0 1 1


def digits_of(name, looks):
    """What the script prints for right answers with these windows, None for none at all."""
    span = name == "qvhighlights"
    task = VideoTask("t", "/v.mp4", "?", "0 - 4" if span else "B", AnswerKind.SPAN if span else AnswerKind.LETTER)
    benchmark, values = resolve(name), defaultdict(list)
    for look in looks:
        windows = () if look is None else (TimeSpan(*look),)
        prediction = Prediction(f"{look[0]} - {look[1]}") if span else Prediction("B", windows)
        for metric, value in benchmark.score(Example(task, EVIDENCE), prediction).items():
            values[metric].append(value)
    found = {name: benchmark.published.digits(name, of, [""] * len(of)) for name, of in values.items()}
    return {name: digits for name, digits in found.items() if digits is not None}


def test_nextgqa_prints_one_decimal_over_the_questions_with_a_window():
    assert digits_of("nextgqa", LOOKS) == {
        "acc_qa": "100.00",
        **{"predicted/acc_gqa": "83.3", "predicted/miop": "75.0", "predicted/iop@0.3": "83.3"},
        **{"predicted/iop@0.5": "83.3", "predicted/miou": "36.7", "predicted/iou@0.3": "50.0"},
        "predicted/iou@0.5": "50.0",
    }


def test_rextime_prints_two_decimals_of_windows_and_every_digit_of_answers():
    assert digits_of("rextime", LOOKS[:6]) == {
        **{"acc_qa": "1.0", "acc_gqa@0.5": "0.5", "r1@0.3": "50.0", "r1@0.5": "50.0", "miou": "36.67"},
    }


def test_qvhighlights_prints_two_decimals():
    assert digits_of("qvhighlights", LOOKS[:3]) == {"r1@0.5": "66.67", "r1@0.7": "33.33"}
