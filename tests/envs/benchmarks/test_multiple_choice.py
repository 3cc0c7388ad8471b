"""Video-MME, MLVU, LVBench, LongVideoBench, MotionBench and FAVOR-Bench: a letter is right, wrong or not to be read.

Each has three questions whose right letters are B, C and A.
"""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.benchmarks.registry import BUILTIN, resolve
from envs.data.rows import DatasetError

OPTIONS = ["red", "blue", "green", "blue"]  # one text twice
IN_QUESTION = "What colour?\n(A) red\n(B) blue\n(C) green\n(D) blue"
RIGHT = ("B", "C", "A")
MLVU_FILES = ("1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning")


def video_mme(write):
    labelled = [f"{letter}. {option}" for letter, option in zip("ABCD", OPTIONS, strict=True)]
    rows = [
        {
            "video_id": f"00{number}",
            "videoID": "vid",
            "duration": duration,
            "question_id": f"00{number}-1",
            "question": "What colour?",
            "options": labelled,
            "answer": letter,
        }
        for number, (letter, duration) in enumerate(zip(RIGHT, ("short", "short", "long"), strict=True))
    ]
    return write("video_mme.jsonl", *rows)


def mlvu(write):
    choices = ((OPTIONS[:3], 1, "plotQA"), (OPTIONS, 2, "plotQA"), (OPTIONS, 0, "findNeedle"))
    shared = {"video": "vid.mp4", "question": "What colour?"}
    rows = [{**shared, "candidates": among, "answer": among[at], "question_type": task} for among, at, task in choices]
    return write("rows.json", rows)


def lvbench(write):
    types = (["reasoning"], ["reasoning", "event understanding"], ["summarization"])
    questions = [
        {"uid": number, "question": IN_QUESTION, "answer": letter, "question_type": of, "time_reference": "01:05-01:10"}
        for number, (letter, of) in enumerate(zip(RIGHT, types, strict=True))
    ]
    return write("video_info.meta.jsonl", {"key": "vid", "type": "cartoon", "qa": questions})


def longvideobench(write):
    rows = [
        {
            "id": f"vid_{number}",
            "video_path": "vid.mp4",
            "question": "What colour?",
            "candidates": OPTIONS,
            "correct_choice": "ABCD".index(letter),
            "duration_group": group,
        }
        for number, (letter, group) in enumerate(zip(RIGHT, (15, 15, 3600), strict=True))
    ]
    return write("lvb_val.json", rows)


def motionbench(write):
    question = "What colour?\nA. red\nB. blue\nC. green\nD. blue"
    rows = [
        {
            "video_path": "vid.mp4",
            "question_type": of,
            "qa": [{"uid": of + letter, "question": question, "answer": letter}],
        }
        for letter, of in zip(RIGHT, ("Camera Motion", "Camera Motion", "Action Order"), strict=True)
    ]
    return write("video_info.meta.jsonl", *rows)


def favor_bench(write):
    shared = {"question": "What colour?", "options": OPTIONS}
    questions = [
        {**shared, "correct_answer": OPTIONS["ABCD".index(letter)], "task_type": of}
        for letter, of in zip(RIGHT, ("AS", "AS", "CM"), strict=True)
    ]
    return write("video_perspective.json", [{"video_name": "vid.mp4", "caption": "…", "questions": questions}])


FILES = {f.__name__: f for f in (video_mme, mlvu, lvbench, longvideobench, motionbench, favor_bench)}
GROUPS = {  # of the three questions
    "video_mme": ["short", "short", "long"],
    "mlvu": ["plotQA", "plotQA", "needle"],
    "lvbench": ["reasoning", "reasoning; event understanding", "summarization"],
    "longvideobench": ["15", "15", "3600"],
    "motionbench": ["Camera Motion", "Camera Motion", "Action Order"],
    "favor_bench": ["AS", "AS", "CM"],
}


@pytest.fixture(params=FILES)
def benchmark(request):
    return resolve(request.param)


@pytest.fixture
def examples(benchmark, write, videos):
    loaded = benchmark.read(FILES[benchmark.name](write), videos("vid.mp4"))
    assert loaded.rejected == ()
    return loaded.examples


def test_every_question_has_its_letter_its_options_and_its_group(benchmark, examples):
    assert tuple(example.task.answer for example in examples) == RIGHT
    assert [example.group for example in examples] == GROUPS[benchmark.name]
    assert len({example.task.task_id for example in examples}) == 3
    for example in examples:
        assert example.task.question.startswith("<video>\nWhat colour?\n")
        assert "red\n" in example.task.question and "blue" in example.task.question
        assert "A. A." not in example.task.question
        assert example.task.video_path.endswith("/vid.mp4")


@pytest.mark.parametrize(
    ("answer", "right", "unparsed"),
    [  # of the first question: B
        ("B", 1, 0),
        ("b", 1, 0),
        ("(B)", 1, 0),
        ("B.", 1, 0),
        ("B. blue", 1, 0),
        ("(B) blue", 1, 0),
        (" B\n", 1, 0),
        ("D", 0, 0),  # the same text as B in most: the letter counts
        ("A", 0, 0),
        ("F", 0, 0),  # read, but no option
        ("blue", 0, 1),
        ("B or D", 0, 1),
        ("The best answer is B", 0, 1),
        ("2", 0, 1),
        ("", 0, 1),
        (None, 0, 1),
    ],
)
def test_golden(benchmark, examples, says, answer, right, unparsed):
    values = benchmark.score(examples[0], says(answer, (1, 2)))
    first_group = GROUPS[benchmark.name][0].replace(" ", "_")
    assert (values["accuracy"], values[f"accuracy/{first_group}"], values["unparsed"]) == (right, right, unparsed)
    assert values[benchmark.headline] == right


def test_means_are_over_all_questions_and_within_groups(benchmark, examples, says, means):
    first, second, third = (example.task.task_id for example in examples)
    table = means(benchmark, examples, {first: says("B"), second: says("D"), third: says("A")})
    assert table["accuracy"] == pytest.approx(2 / 3)
    in_groups = {name: value for name, value in table.items() if name.startswith("accuracy/")}
    assert sorted(in_groups.values()) == sorted([1 / 2, 1.0] + [0.0] * (benchmark.name == "lvbench"))
    assert table[benchmark.headline] == pytest.approx(3 / 4 if benchmark.name == "mlvu" else 2 / 3)


def test_what_is_missing_or_cannot_be_read_counts_0(benchmark, examples, says, means):
    first, second, _ = (example.task.task_id for example in examples)
    table = means(benchmark, examples, {first: says("B"), second: says("green")})
    assert table["accuracy"] == pytest.approx(1 / 3)
    assert table["unparsed"] == 1 / 2  # of the two predictions
    # what the official scripts divide by: the answers that could be read, or the predictions
    answered = {"video_mme": 1.0, "lvbench": 1 / 2, "motionbench": 1 / 2}
    assert table.get("answered/accuracy") == answered.get(benchmark.name)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_missing_video_is_a_reported_row(benchmark, write, videos, reasons, place):
    loaded = benchmark.read(FILES[benchmark.name](write), videos("other.mp4"))
    assert loaded.examples == ()
    assert "vid.mp4' cannot be found" in reasons(loaded)[place][1]


def test_a_file_of_another_kind_is_refused_with_the_remedy(benchmark, tmp_path):
    (tmp_path / "x.xlsx").touch()
    with pytest.raises(DatasetError, match=r"expected one of \.json, \.jsonl, \.ndjson, \.csv, \.tsv, \.parquet"):
        benchmark.read(tmp_path / "x.xlsx", tmp_path)
    with pytest.raises(DatasetError, match="no such annotation file"):
        benchmark.read(tmp_path / "none.json", tmp_path)
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(DatasetError, match="no such folder of videos"):
        benchmark.read(tmp_path / "x.json", tmp_path / "none")


KEYS = [
    *("video", "video_id", "videoID", "url", "duration", "question_id", "question", "options", "choices", "candidates"),
    *("answer", "question_type", "key", "uid", "qa", "questions", "id", "video_path", "correct_choice", "video_name"),
    *("correct_answer", "task_type", "qid", "vid", "query", "ans", "span", "relevant_windows", "time_reference"),
]
ODD = st.sampled_from(["http://[", "x" * 5000, "a\0b", "../x", "NA", "\ud800", "A. ", "0:1-0:2", -1, 10**30])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | ODD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.thorough
@settings(max_examples=40)  # each is read eight times
@given(rows=st.lists(JSON | st.dictionaries(st.sampled_from(KEYS), JSON), max_size=3))
def test_no_row_is_a_crash_in_any_benchmark(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    for name in set(BUILTIN) - {"charades_sta", "activitynet_mr", "nextgqa"}:  # their files are of another shape
        loaded = resolve(name).read(path, folder)
        assert loaded.examples == ()
        assert all("\n" not in row.reason for row in loaded.rejected)


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=30)
@given(data=st.data())
def test_a_value_that_makes_no_sense_costs_its_row_and_no_other(name, data, tmp_path_factory):
    file, *rows = FILES[name](lambda *written: written)
    rows = copy.deepcopy(rows[0] if isinstance(rows[0], list) else rows)
    first = rows[0]
    nested = next((first[key][0] for key in ("qa", "questions") if key in first), {})
    among = data.draw(st.sampled_from([row for row in (first, nested) if row]))
    among[data.draw(st.sampled_from(sorted(among)))] = data.draw(JSON)

    folder = tmp_path_factory.mktemp("rows")
    (folder / "vid.mp4").touch()
    path = folder / file
    path.write_text("\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else json.dumps(rows))
    loaded = resolve(name).read(path, folder)
    assert len(loaded.examples) + len(loaded.rejected) >= 1
    if len(rows) == 3:
        assert len(loaded.examples) >= 2  # the other rows


# what only one of them does


def test_video_mme_reads_the_authors_nested_json(write, videos):
    question = {"question_id": "001-1", "question": "What?", "choices": ["A. x", "B. y"], "answer": "B"}
    row = {"video_id": "001", "duration_category": "medium", "url": "https://www.youtube.com/watch?v=abc&t=1"}
    path = write("Video-MME.json", [{**row, "questions": [question, {**question, "question_id": "001-2"}]}])
    examples = resolve("video_mme").read(path, videos("data/abc.MP4")).examples
    assert [(example.task.task_id, example.group) for example in examples] == [("001-1", "medium"), ("001-2", "medium")]
    assert examples[0].task.video_path.endswith("data/abc.MP4")


def test_video_mme_refuses_a_length_it_does_not_know(write, videos, reasons):
    row = {
        "question_id": "1",
        "question": "?",
        "options": ["x", "y"],
        "answer": "A",
        "duration": "huge",
        "videoID": "a",
    }
    loaded = resolve("video_mme").read(write("rows.jsonl", row), videos("a.mp4"))
    assert reasons(loaded) == [(1, "'duration' must be short, medium or long, got 'huge'")]


def test_mlvu_is_the_mean_over_seven_tasks_however_many_questions_each_has(write, videos, says, means):
    for number, file in enumerate(MLVU_FILES):
        task = "findNeedle" if "needle" in file else file.partition("_")[2]
        row = {"video": "v.mp4", "question": "?", "candidates": ["x", "y"], "answer": "y", "question_type": task}
        folder = write(f"{file}.json", [row] * (number + 1)).parent  # 1, 2, … 7 questions
    write("8_sub_scene.json", [{"question": "?"}])  # generation: not read
    loaded = resolve("mlvu").read(folder, videos(*(f"video/{file}/v.mp4" for file in MLVU_FILES)))
    assert (len(loaded.examples), loaded.rejected) == (28, ())

    right = {e.task.task_id: says("B") for e in loaded.examples if e.group in ("plotQA", "count")}
    table = means(resolve("mlvu"), loaded.examples, right)
    assert table["m_avg"] == pytest.approx(2 / 7)  # two tasks wholly right, the others missing
    assert table["official/m_avg"] == pytest.approx(2 / 7)
    assert table["accuracy"] == pytest.approx(5 / 28)
    assert (table["accuracy/plotQA"], table["accuracy/needle"]) == (1.0, 0.0)


def test_mlvu_takes_the_last_of_equal_candidates_as_its_script_does(write, videos):
    row = {"video": "v.mp4", "question": "?", "candidates": ["x", "y", "y"], "answer": "y", "question_type": "count"}
    (example,) = resolve("mlvu").read(write("4_count.json", [row]), videos("v.mp4")).examples
    assert example.task.answer == "C"


def test_mlvu_counts_blank_candidates_and_answers_that_are_none(write, videos, says):
    shared = {"video": "v.mp4", "question_type": "ego"}
    rows = [
        {**shared, "question": "Where?", "candidates": ["in", "out", "", "on"], "answer": "in"},
        {**shared, "question": "Where?", "candidates": ["in", "out", "", "on"], "answer": ""},
        {**shared, "question": "", "candidates": ["", "", "", ""], "answer": ""},
        {**shared, "question": "Where?", "candidates": ["in", "out", "under", "on"], "answer": "nowhere"},
        {**shared, "question": "How many?", "candidates": ["1", "2"], "answer": "B"},  # no option, though a letter
    ]
    loaded = resolve("mlvu").read(write("3_ego.json", rows), videos("v.mp4"))
    assert loaded.rejected == ()
    score = resolve("mlvu").score
    right = [[x for x in "ABCD" if score(one, says(x))["m_avg"]] for one in loaded.examples]
    assert right == [["A"], ["C"], ["D"], [], []]
    assert [one.answerable for one in loaded.examples] == [True, True, True, False, False]
    assert "\nA. in\nB. out\nC.\nD. on\n" in loaded.examples[1].task.question


@pytest.mark.real_data
def test_mlvu_as_published_is_2175_questions(real_data_dir, videos):
    folder = real_data_dir / "mlvu"
    rows = [row for file in folder.glob("*.json") for row in json.loads(file.read_bytes())]
    loaded = resolve("mlvu").read(folder, videos(*{row["video"] for row in rows}))
    assert (len(loaded.examples), loaded.rejected) == (2175, ())
    assert sum("" in one.options for one in loaded.examples) == 4
    assert [one.task.task_id for one in loaded.examples if not one.answerable] == ["2_needle:35", "2_needle:339"]


def test_mlvu_needs_all_seven_files_of_the_folder(write, videos):
    folder = write("1_plotQA.json", []).parent
    with pytest.raises(DatasetError, match=r"mean over seven tasks; there is no file \*_needle\.json"):
        resolve("mlvu").read(folder, videos("v.mp4"))


def test_mlvu_names_file_and_line_of_a_row_it_cannot_use(write, videos, reasons):
    row = {"video": "v.mp4", "question": "?", "candidates": ["x", "y"], "answer": "y", "question_type": "subPlot"}
    loaded = resolve("mlvu").read(write("8_sub_scene.json", [row]), videos("v.mp4"))
    ((line, reason),) = reasons(loaded)
    assert line == 1 and reason.startswith("8_sub_scene.json: 'subPlot' is none of the multiple-choice tasks plotQA")


@pytest.mark.parametrize(
    ("reference", "window"),
    [
        ("00:15-00:19", (15, 19)),
        ("1:02:03 - 1:02:10", (3723, 3730)),
        ("59:59-1:00:30", (3599, 3630)),
        ("00:19-00:15", None),
        ("00:15", None),
        ("all", None),
        (None, None),
    ],
)
def test_lvbench_says_where_the_answer_is_if_it_can(write, videos, reference, window):
    question = {"uid": "1", "question": IN_QUESTION, "answer": "D", "question_type": [], "time_reference": reference}
    (example,) = resolve("lvbench").read(write("x.jsonl", {"key": "v", "qa": [question]}), videos("v.mp4")).examples
    assert [(one.start_s, one.end_s) for one in example.windows] == ([window] if window else [])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"correct_choice": None}, "the test split's are withheld"),
        ({"correct_choice": -1}, "the test split's are withheld"),
        ({"correct_choice": 4}, "'correct_choice' must be 0 to 3, got 4"),
        ({"correct_choice": True}, "'correct_choice' must be 0 to 3"),
        ({"correct_choice": "B"}, "'correct_choice' must be 0 to 3"),
        ({"candidates": ["x"]}, "2 to 26 options"),
    ],
)
def test_longvideobench_reports_what_it_cannot_score(write, videos, reasons, change, reason):
    row = {"id": "v_0", "video_path": "v.mp4", "question": "?", "candidates": OPTIONS, "correct_choice": 1}
    loaded = resolve("longvideobench").read(
        write("lvb_val.json", [row, {**row, "id": "v_1", **change}]), videos("v.mp4")
    )
    assert len(loaded.examples) == 1
    assert reason in reasons(loaded)[0][1]


def test_longvideobench_reads_the_options_of_the_table(write, videos):
    row = {"id": "v_0", "video_path": "v.mp4", "question": "?", "correct_choice": 2, "option4": "N/A"}
    row |= {f"option{number}": option for number, option in enumerate(OPTIONS)}
    (example,) = resolve("longvideobench").read(write("x.jsonl", row), videos("videos/v.mp4")).examples
    assert example.task.answer == "C" and "D. blue" in example.task.question and "N/A" not in example.task.question


def test_motionbench_leaves_out_the_questions_whose_answers_are_withheld(write, videos, reasons):
    questions = [{"uid": number, "question": IN_QUESTION, "answer": answer} for number, answer in enumerate("BN")]
    questions[1]["answer"] = "NA"
    row = {"video_path": "v.mp4", "question_type": "Camera Motion", "qa": questions}
    loaded = resolve("motionbench").read(write("x.jsonl", row), videos("public-dataset/v.mp4"))
    assert [example.task.task_id for example in loaded.examples] == ["0"]
    assert reasons(loaded) == [(1, "the answer is withheld: a question of the test split")]


def test_motionbench_reports_a_question_whose_options_cannot_be_found(write, videos, reasons):
    row = {"video_path": "v.mp4", "question_type": "Action Order", "qa": [{"uid": 1, "question": "?", "answer": "A"}]}
    loaded = resolve("motionbench").read(write("x.jsonl", row), videos("v.mp4"))
    assert "does not hold options" in reasons(loaded)[0][1]


def test_favor_bench_reads_a_question_per_row_too(write, videos):
    row = {"question_key": "00X3U_1", "video_name": "00X3U", "question": "?", "options": OPTIONS, "task_type": "AS"}
    path = write("question_perspective.json", [{**row, "correct_answer": "blue"}])
    (example,) = resolve("favor_bench").read(path, videos("videos/FAVOR-Bench/00X3U.mp4")).examples
    assert (example.task.task_id, example.task.answer, example.group) == ("00X3U_1", "B", "AS")


def test_a_list_of_questions_must_be_one(write, videos, reasons):
    path = write("x.jsonl", *({"key": "v", "qa": questions} for questions in ({}, [], [7])))
    assert reasons(resolve("lvbench").read(path, videos("v.mp4"))) == [
        (1, "'qa' must be a list of questions, not empty, got {}"),
        (2, "'qa' must be a list of questions, not empty, got []"),
        (3, "expected an object with keys, got a number"),
    ]
