"""Which of an evaluation's numbers may stand beside published ones, and the digits of the authors' script."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from envs.benchmarks.benchmark import Example, Prediction, RejectedExample
from envs.benchmarks.published import OURS, Published, fraction
from rl.config.file import load_config
from rl.evaluation.evaluate import summarise_outcomes
from rl.evaluation.predictions import Outcome
from rl.evaluation.published import published_numbers
from rl.evaluation.scorers import rescored
from rl.evaluation.suite import EvaluationSuite, limited
from rl.evaluation.summary import make_report, print_report
from rl.trajectory import AnswerKind, VideoTask

pytestmark = pytest.mark.ray  # Ray is imported; no cluster is needed

CONFIG = load_config([Path(__file__).parents[3] / "configs" / "quickstart.yaml"])
EXAMPLES = tuple(Example(VideoTask(f"q{i}", f"/v{i}.mp4", "?", "B", AnswerKind.LETTER)) for i in range(4))
PUBLISHED = Published(
    why_not={"official/": "", "official/acc": "withheld ones count", "accuracy": "reads lower case"},
    splits={"dev": 4, "test": 9},
    printed={"official/": fraction},
)


def metric(example, prediction):
    right = float(prediction is not None and prediction.answer == example.task.answer)
    read = float(prediction is not None and (prediction.answer or "").upper() == example.task.answer)
    answered = {} if prediction is None else {"official/answered": right}
    return {"accuracy": read, "official/acc": right, **answered}


SUITE = EvaluationSuite(
    *("letters", "by hand", "accuracy", EXAMPLES, (RejectedExample(7, "withheld"),)),
    metric=metric,
    over_file=("official/acc",),
    unasked=1,
    published=PUBLISHED,
)


def outcomes(*answers):
    """Of the first examples; None: there is no prediction."""
    return [
        Outcome(
            *(f"q{i}", i, "", metric(EXAMPLES[i], None if answer is None else Prediction(answer)), answer, (), "", ""),
            missing="gone" if answer is None else None,
        )
        for i, answer in enumerate(answers)
    ]


def test_a_number_is_comparable_or_says_why_not_and_shows_the_scripts_digits():
    assert published_numbers(SUITE, outcomes("B", "b", "A", "B")) == {
        "accuracy": {"comparable": False, "why_not": "reads lower case", "printed": None},
        "official/acc": {"comparable": False, "why_not": "withheld ones count", "printed": "0.4"},  # 2 of 4 + 1
        "official/answered": {"comparable": True, "why_not": None, "printed": "0.5"},
    }


@pytest.mark.parametrize(
    ("answers", "why_not"),
    [
        ("BBB", "3 questions were asked; published are numbers over the 4 of dev, 9 of test"),
        ("BBB-", "1 without a prediction"),
        ("B-", "2 questions were asked; published are numbers over the 4 of dev, 9 of test; 1 without a prediction"),
    ],
)
def test_a_number_over_other_questions_than_the_published_ones_is_not_comparable(answers, why_not):
    numbers = published_numbers(SUITE, outcomes(*(None if answer == "-" else answer for answer in answers)))
    assert not numbers["official/answered"]["comparable"]
    assert numbers["official/answered"]["why_not"].startswith(why_not)
    assert numbers["accuracy"]["why_not"] == "reads lower case"  # what holds of the metric holds of every run


def test_where_nothing_is_known_of_published_numbers_nothing_is_said():
    assert published_numbers(replace(SUITE, published=Published()), outcomes("B")) == {}
    unknown = replace(SUITE, published=Published(why_not={"accuracy": ""}))
    assert published_numbers(unknown, outcomes("B"))["accuracy"]["comparable"]  # of any number of questions
    assert published_numbers(unknown, outcomes("B"))["official/acc"]["why_not"] == OURS


def test_questions_that_were_not_asked_count_0_where_the_whole_file_counts():
    suite = limited(SUITE, 2)
    assert (len(suite.examples), suite.unasked) == (2, 3)  # one withheld, two beyond the limit
    assert limited(SUITE, 0) == SUITE
    summary = summarise_outcomes(outcomes("B", "A"), over_file=suite.over_file, unasked=suite.unasked)
    assert (summary["metrics"]["official/acc"]["value"], summary["metrics"]["official/acc"]["n"]) == (0.2, 5)
    assert (summary["metrics"]["accuracy"]["value"], summary["metrics"]["accuracy"]["n"]) == (0.5, 2)


def shown(suite, said):
    report = make_report(CONFIG, suite, said, {}, {})
    console = Console(width=120, record=True, file=io.StringIO())
    print_report(report, console)
    return report, " ".join(console.export_text().split())


def test_the_table_says_it_number_by_number():
    report, text = shown(SUITE, outcomes("B", "b", "A", "B"))
    assert report["split"] == "dev" and report["over_file"] == ["official/acc"]
    assert "letters dev: 4 examples" in text and "authors print comparable" in text
    assert "accuracy 0.750 4 examples: too few for an interval 4 no (a)" in text
    assert "official/acc 0.400 5 examples: too few for an interval 5 0.4 no (b)" in text
    assert "official/answered 0.500 4 examples: too few for an interval 4 0.5 yes" in text
    assert "(a) not comparable with published numbers: reads lower case" in text
    assert "(b) not comparable with published numbers: withheld ones count" in text


def test_the_table_of_held_out_tasks_says_nothing_of_published_numbers():
    report, text = shown(replace(SUITE, published=Published()), outcomes("B"))
    assert report["published"] == {} and "comparable" not in text


def test_questions_whose_answer_is_no_option_are_counted():
    suite = replace(SUITE, examples=(*EXAMPLES[:3], replace(EXAMPLES[3], answerable=False)))
    report, text = shown(suite, outcomes("B", "B", "B", "B"))
    assert report["counts"]["unanswerable"] == 1
    assert "1 whose annotated answer is none of the options" in text


def test_what_an_earlier_version_has_scored_is_scored_again_from_what_was_said():
    now = outcomes("B", None, "**B**")
    now[2] = replace(now[2], text="<answer>**B**</answer>")
    before = [replace(outcome, metrics={"accuracy": outcome.metrics["accuracy"]}) for outcome in now]
    suite = limited(SUITE, 3)
    again = rescored(suite, before)
    assert [one.metrics for one in again] == [
        {"accuracy": 1.0, "official/acc": 1.0, "official/answered": 1.0, "lenient/accuracy": 1.0},
        {"accuracy": 0.0, "official/acc": 0.0, "lenient/accuracy": 0.0},
        {"accuracy": 0.0, "official/acc": 0.0, "official/answered": 0.0, "lenient/accuracy": 1.0},
    ]
    assert [replace(one, metrics=old.metrics) for one, old in zip(again, before, strict=True)] == before
    assert rescored(suite, [again[0], before[1], again[2]]) == [again[1]]
    assert rescored(suite, again) == []
    assert rescored(replace(suite, metric=None), before) == []  # rewards need the whole trajectory


def test_a_metric_by_the_other_reading_is_as_comparable():
    said = [
        replace(one, metrics={"lenient/accuracy": 1.0, "strict/official": 1.0}) for one in outcomes("B", "B", "B", "B")
    ]
    numbers = published_numbers(SUITE, said)
    assert numbers["lenient/accuracy"]["why_not"] == "reads lower case"
    assert numbers["strict/official"]["why_not"] == OURS
