"""Rows to tasks and traces; what cannot be used is reported with file, line and reason."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.data.dataset import load_tasks, load_traces, tasks_for_step
from envs.data.rows import DatasetError, UnusableRow
from envs.data.videos import confine
from envs.video.reader import VideoOpenError
from rl.trajectory import AnswerKind, TimeSpan

DM_RL = {
    "prompt": "<video>\nWhen does it happen?",
    "video": "videos/a.mp4",
    "answer": "0.00 - 8.00",
    "fps": 3,
    "gt_span_start": 0.0,
    "gt_span_end": 8.0,
}
EVIDENT = {"prompt": "<video>\nWhat?", "video": "videos/a.mp4", "answer": "B"}
REPLY = "<think>Look. <span>2.00 - 4.00</span><fps>3</fps><video>\n Red.</think><answer>B</answer>"
DM_COT = {
    "index": 1,
    "video": ["videos/a.mp4"],
    "conversations": [{"from": "human", "value": "<video>\nWhat flashes?"}, {"from": "gpt", "value": REPLY}],
    "gemini_suggested_fps": 4,
}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "videos").mkdir()
    for name in ("a", "b"):
        (tmp_path / "videos" / f"{name}.mp4").write_bytes(b"")  # loading looks for files, not into them
    return tmp_path


def write(root, *rows, name="rows.jsonl"):
    path = root / name
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path


def reasons(loaded):
    return [(row.line, row.reason) for row in loaded.rejected]


def test_a_dm_rl_row_becomes_a_task(root):
    (task,) = load_tasks("dm_rl", write(root, DM_RL)).tasks
    assert (task.task_id, task.question) == ("rows:1", "<video>\nWhen does it happen?")
    assert task.video_path == str((root / "videos" / "a.mp4").resolve())
    assert (task.answer, task.answer_kind) == ("0.00 - 8.00", AnswerKind.SPAN)
    assert (task.evidence_span, task.evidence_fps) == (TimeSpan(0.0, 8.0), 3.0)


def test_evidence_is_optional(root):
    row = {key: DM_RL[key] for key in ("prompt", "video")} | {"answer": "B"}
    (task,) = load_tasks("dm_rl", write(root, row)).tasks
    assert (task.evidence_span, task.evidence_fps, task.answer_kind) == (None, None, AnswerKind.LETTER)


def test_a_row_may_say_the_kind_of_its_answer(root):
    rows = [DM_RL | {"answer": "1-3"} | kind for kind in ({}, {"answer_kind": "score"}, {"answer_kind": "open"})]
    rows.append(DM_RL | {"answer": "3-1", "answer_kind": "score"})
    tasks = load_tasks("dm_rl", write(root, *rows)).tasks
    assert [(task.answer, task.answer_kind) for task in tasks] == [
        ("1-3", AnswerKind.SPAN),
        ("1-3", AnswerKind.SCORE),
        ("1-3", AnswerKind.OPEN),
        ("3-1", AnswerKind.SCORE),
    ]


def test_a_row_may_have_several_windows_of_evidence(root):
    row = {key: DM_RL[key] for key in ("prompt", "video", "fps")} | {"answer": "B", "evidence": [[1, 2], [5, 8.5]]}
    one = row | {"evidence": [1, 2]}
    named = row | {"gt_span_start": 5, "gt_span_end": 8.5}
    tasks = load_tasks("dm_rl", write(root, row, one, named)).tasks
    both = (TimeSpan(1, 2), TimeSpan(5, 8.5))
    assert [task.evidence for task in tasks] == [both, both[:1], both]
    assert (tasks[0].evidence_span, tasks[0].further_evidence) == (TimeSpan(1, 2), (TimeSpan(5, 8.5),))


def test_one_bad_window_of_several_does_not_cost_the_row(root):
    windows = [[1, 2], [4, 3], [5], "6 - 7", [8, None], [-1, 2], [9, 10]]
    loaded = load_tasks("dm_rl", write(root, DM_RL, EVIDENT | {"evidence": windows}))
    assert loaded.tasks[1].evidence == (TimeSpan(1, 2), TimeSpan(9, 10))
    assert [(part.line, part.reason) for part in loaded.windows_left_out] == [
        (2, "window 2 of 'evidence' is reversed or empty: 4 - 3"),
        (2, "window 3 of 'evidence' must be [start, end], got [5]"),
        (2, "window 4 of 'evidence' must be [start, end], got '6 - 7'"),
        (2, "window 5 of 'evidence' must be [start, end], got [8, null]"),
        (2, "window 6 of 'evidence' begins before the video: -1 - 2"),
    ]
    loaded = load_tasks("dm_rl", write(root, EVIDENT | {"evidence": [[1, 2], [9, 10]]}), duration_of=lambda _: 9.0)
    (part,) = loaded.windows_left_out
    assert "1 of 2 windows of 'evidence' lie after the end of the video" in part.reason
    assert loaded.tasks[0].evidence == (TimeSpan(1, 2),)  # the other one begins where the clip ends


def test_columns_that_no_format_knows_are_for_the_users_rewards(root):
    (task,) = load_tasks("dm_rl", write(root, DM_RL | {"difficulty": 3, "source": {"name": "mine"}})).tasks
    assert task.extra == {"difficulty": 3, "source": {"name": "mine"}}
    assert hash(task)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b'{"prompt": ', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b'"text"', "expected an object"),
        ({}, "'video' must be a text"),
        (DM_RL | {"prompt": 7}, "'prompt' must be a text"),
        (DM_RL | {"prompt": "<video>\n"}, "no question"),
        (DM_RL | {"prompt": "half \ud800 a pair"}, "half a Unicode pair"),
        (DM_RL | {"answer": None}, "'answer' must be a text"),
        (DM_RL | {"answer": "..."}, "says nothing"),
        (DM_RL | {"answer": "8.00 - 0.00"}, "the answer is reversed or empty as a window"),
        (DM_RL | {"answer": "3-1"}, 'if it is none, say so in the row: "answer_kind": "score" or "open"'),
        (DM_RL | {"answer": "B<|im_end|>"}, "holds <|im_end|>, which a policy cannot write"),
        (DM_RL | {"answer": "red", "answer_kind": "letter"}, "'red' is not a letter"),
        (DM_RL | {"answer": "1.000,5", "answer_kind": "number"}, "'1.000,5' is not a number, as 1000.5"),
        (DM_RL | {"answer_kind": "points"}, "must be one of letter, span, number, score, open, got 'points'"),
        (DM_RL | {"answer_kind": ["span"]}, "'answer_kind' must be one of"),
        (EVIDENT | {"evidence": [[4, 3]]}, "window 1 of 'evidence' is reversed or empty: 4 - 3"),
        (EVIDENT | {"evidence": []}, "'evidence' must be a list of windows [[start, end], …] in seconds, got []"),
        (EVIDENT | {"evidence": "1 - 2"}, "'evidence' must be a list of windows"),
        (DM_RL | {"evidence": [[1, 2]]}, "gt_span_start and gt_span_end (0 - 8) are not in 'evidence'"),
        (DM_RL | {"gt_span_start": 8.0, "gt_span_end": 2.0}, "the evidence span is reversed"),
        (DM_RL | {"gt_span_start": -1.0}, "begins before the video"),
        (DM_RL | {"gt_span_end": None}, "given together"),
        (DM_RL | {"gt_span_end": float("nan")}, "'gt_span_end' must be a finite number"),
        (DM_RL | {"gt_span_end": float("inf")}, "'gt_span_end' must be a finite number"),
        (DM_RL | {"gt_span_end": 10**400}, "'gt_span_end' must be a finite number"),
        (DM_RL | {"gt_span_end": "8"}, "'gt_span_end' must be a finite number"),
        (DM_RL | {"gt_span_end": True}, "'gt_span_end' must be a finite number"),
        (DM_RL | {"fps": 0}, "frame rate must be above 0"),
        (DM_RL | {"video": "videos/none.mp4"}, "'videos/none.mp4' cannot be found"),
        (DM_RL | {"video": "videos"}, "not a regular file"),
        (DM_RL | {"video": "../outside.mp4"}, "lies outside"),
        (DM_RL | {"video": "/etc/passwd"}, "lies outside"),
        (DM_RL | {"video": "/dev/zero"}, "lies outside"),
        (DM_RL | {"video": "videos/../../outside.mp4"}, "lies outside"),
        (DM_RL | {"video": "a\0b"}, r"holds '\x00'"),
        (DM_RL | {"video": "videos/a\n.mp4"}, r"holds '\n'"),
        (DM_RL | {"video": "videos/a\u2028.mp4"}, r"holds '\u2028'"),
        (DM_RL | {"video": "videos/\x1b[31m.mp4"}, r"holds '\x1b'"),
        (DM_RL | {"video": "\udcff.mp4"}, "'video' holds half a Unicode pair"),
        (DM_RL | {"video": "x" * 300}, "File name too long"),
        (DM_RL | {"video": "a/../" * 500_000}, "'video' is longer than 100,000 characters"),
    ],
)
def test_a_row_that_cannot_be_used_is_reported_and_the_others_are_kept(root, row, reason):
    (root.parent / "outside.mp4").write_bytes(b"")
    path = write(root, DM_RL, row, DM_RL)
    loaded = load_tasks("dm_rl", path)
    assert [task.task_id for task in loaded.tasks] == ["rows:1", "rows:3"]
    ((line, found),) = reasons(loaded)
    assert (line, loaded.rejected[0].file) == (2, str(path))
    assert reason in found and "\n" not in found and len(found) < 400


@given(row=st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner)))
def test_no_value_under_any_key_is_a_crash(row, tmp_path_factory):
    root = tmp_path_factory.mktemp("rows")
    (root / "videos").mkdir()
    (root / "videos" / "a.mp4").write_bytes(b"")
    rows = [row, *(DM_RL | {key: row} for key in DM_RL)]
    loaded = load_tasks("dm_rl", write(root, *rows))
    assert len(loaded.tasks) + len(loaded.rejected) == len(rows)
    rows = [row, *(DM_COT | {key: row} for key in DM_COT)]
    loaded = load_tasks("dm_cot", write(root, json.dumps(rows).encode(), name="cot.json"))
    assert len(loaded.tasks) + len(loaded.rejected) == len(rows)


@pytest.mark.parametrize("form", ["lines", "array", "indented", "lines with CR", "UTF-16"])
@pytest.mark.parametrize("format", ["dm_rl", "dm_cot"])
def test_lines_and_arrays_are_read_where_either_is_usual(root, format, form):
    rows = [DM_RL | {"video": ["videos/b.mp4"]}] * 3 if format == "dm_rl" else [DM_COT] * 3
    lines = "\n".join(map(json.dumps, rows))
    content = {
        "array": json.dumps(rows),
        "indented": json.dumps(rows, indent=2),
        "lines with CR": lines.replace("\n", "\r"),
    }
    path = root / "rows.json"
    path.write_bytes(content.get(form, lines).encode("utf-16" if form == "UTF-16" else "utf-8"))
    loaded = load_tasks(format, path)
    assert (len(loaded.tasks), loaded.rejected) == (3, ())


def test_an_object_around_all_rows_is_said_to_be_one(root):
    path = root / "rows.json"
    path.write_text(json.dumps({"version": 1, "data": [DM_RL]}))
    ((line, reason),) = reasons(load_tasks("dm_rl", path))
    assert line == 1 and "its rows seem to be under the key 'data': jq" in reason


def test_a_task_is_about_one_video(root):
    several = DM_RL | {"video": ["videos/a.mp4", "videos/b.mp4"]}
    loaded = load_tasks("dm_rl", write(root, DM_RL | {"video": ["videos/a.mp4"]}, several, DM_RL | {"video": [["a"]]}))
    assert [task.video_path for task in loaded.tasks] == [str((root / "videos" / "a.mp4").resolve())]
    assert [line for line, _ in reasons(loaded)] == [2, 3]
    assert "exactly one video per row is supported, got 2" in reasons(loaded)[0][1]


def test_several_questions_about_one_clip_are_several_tasks(root):
    durations = []
    loaded = load_tasks("dm_rl", write(root, *[DM_RL] * 3), duration_of=lambda path: durations.append(path) or 9.0)
    assert [task.task_id for task in loaded.tasks] == ["rows:1", "rows:2", "rows:3"]
    assert len(durations) == 1


def test_lines_that_end_in_cr_only_are_lines(root):
    path = root / "sta.txt"
    path.write_bytes(b"a 1.3 3.4##person turn a light on.\rb 0.0 2.4##person laughs.\r")
    loaded = load_tasks("charades_sta", path, root / "videos")
    assert [task.answer for task in loaded.tasks] == ["1.30 - 3.40", "0.00 - 2.40"]
    assert [task.task_id for task in loaded.tasks] == ["sta:1", "sta:2"]


def test_blank_lines_and_a_byte_order_mark_are_no_rows(root):
    loaded = load_tasks("dm_rl", write(root, b"\xef\xbb\xbf" + json.dumps(DM_RL).encode(), b"", b"   ", DM_RL))
    assert ([task.task_id for task in loaded.tasks], loaded.rejected) == (["rows:1", "rows:4"], ())


def test_a_link_out_of_the_root_is_refused(root, tmp_path_factory):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.mp4"
    secret.write_bytes(b"")
    os.symlink(secret, root / "videos" / "link.mp4")
    os.symlink(root / "videos" / "loop.mp4", root / "videos" / "loop.mp4")
    with pytest.raises(UnusableRow, match="lies outside"):
        confine("videos/link.mp4", root)
    with pytest.raises(UnusableRow, match="cannot be found"):
        confine("videos/loop.mp4", root)


def test_a_dm_cot_row_is_a_trace_and_a_task(root):
    path = write(root, json.dumps([DM_COT]).encode(), name="cot.json")
    (trace,) = load_traces("dm_cot", path).traces
    assert trace.replies == (
        "<think>Look. <span>2.00 - 4.00</span><fps>3</fps>",
        "\n Red.</think><answer>B</answer>",
    )
    assert load_tasks("dm_cot", path).tasks == (trace.task,)
    assert (trace.task.answer, trace.task.evidence_span, trace.task.evidence_fps) == ("B", TimeSpan(2.0, 4.0), 4.0)


def with_reply(reply):
    return DM_COT | {"conversations": [DM_COT["conversations"][0], {"from": "gpt", "value": reply}]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (with_reply("<think>no frames asked<video></think><answer>B</answer>"), "exactly where a call ends"),
        (with_reply(REPLY.replace("<video>", "")), "exactly where a call ends"),
        (with_reply(REPLY.replace("2.00 - 4.00", "4.00 - 2.00")), "the call cannot be read"),
        (with_reply(REPLY.replace("<answer>B</answer>", "")), "does not end in <answer>"),
        (
            with_reply(REPLY.replace("B</answer>", "**B**</answer>")),
            "rewards do not read: '**B**'; write <answer>B</ans",
        ),
        (with_reply(REPLY.replace("<answer>", "<answer>A</answer><answer>")), "write <answer>B</answer>, once"),
        (DM_COT | {"conversations": []}, "one question and one reply"),
        (DM_COT | {"conversations": [{"from": "gpt", "value": "x"}] * 2}, "from 'human', then from 'gpt'"),
        (DM_COT | {"video": ["videos/a.mp4", "videos/b.mp4"]}, "exactly one video"),
        (DM_COT | {"video": []}, "exactly one video"),
    ],
)
def test_a_trace_that_teaches_something_else_is_reported(root, row, reason):
    path = root / "cot.json"
    path.write_text(json.dumps([DM_COT, row, DM_COT], indent=None).replace('{"index"', '\n{"index"'))
    loaded = load_traces("dm_cot", path)
    assert len(loaded.traces) == 2
    ((line, found),) = reasons(loaded)
    assert line == 3 and reason in found


def test_an_array_that_breaks_off_keeps_the_rows_before(root):
    path = root / "cot.json"
    path.write_text("[\n" + json.dumps(DM_COT) + ',\n{"index": 2, ')
    loaded = load_traces("dm_cot", path)
    assert len(loaded.traces) == 1
    ((line, reason),) = reasons(loaded)
    assert line == 3 and reason.startswith("not JSON from here on")


def test_charades_lines_become_spans_to_find(root):
    path = write(root, b"a 24.3 30.4##person turn a light on.", name="sta.txt")
    (task,) = load_tasks("charades_sta", path, root / "videos").tasks
    assert task.question.startswith("<video>\nGive you a textual query: person turn a light on.\n")
    assert (task.answer, task.answer_kind) == ("24.30 - 30.40", AnswerKind.SPAN)
    assert (task.evidence_span, task.evidence_fps) == (TimeSpan(24.3, 30.4), None)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"a 5.0 5.0##x.", "reversed or empty"),
        (b"a 6.0 5.0##x.", "reversed or empty"),
        (b"a 1.0 nan##x.", "finite number"),
        (b"a one 2##x.", "finite number"),
        (b"a 1_0 20##x.", "finite number"),
        (b"a 1.0 2.0 x.", "expected 'VIDEO start end##sentence.'"),
        (b"a 1.0##x.", "expected 'VIDEO start end##sentence.'"),
        (b"a 1.0 2.0##", "expected 'VIDEO start end##sentence.'"),
        (b"../outside 1.0 2.0##x.", "lies outside"),
        (b"none 1.0 2.0##x.", "'none.mp4' cannot be found"),
    ],
)
def test_a_charades_line_that_cannot_be_used_is_reported(root, row, reason):
    (root / "outside.mp4").write_bytes(b"")
    loaded = load_tasks("charades_sta", write(root, row, name="sta.txt"), root / "videos")
    ((line, found),) = reasons(loaded)
    assert line == 1 and reason in found


def test_spans_that_end_after_the_clip_are_clamped_and_counted(root):
    rows = (b"a 1.0 9.0##late.", b"a 1.0 7.0##fine.", b"a 8.5 9.0##gone.", b"b 1.0 2.0##unreadable.")

    def duration_of(path):
        if path.endswith("b.mp4"):
            raise VideoOpenError(path, "broken", "replace it")
        return 8.0

    path = write(root, *rows, name="sta.txt")
    loaded = load_tasks("charades_sta", path, root / "videos", duration_of=duration_of)
    assert [task.evidence_span for task in loaded.tasks] == [TimeSpan(1.0, 8.0), TimeSpan(1.0, 7.0)]
    assert [task.answer for task in loaded.tasks] == ["1.00 - 8.00", "1.00 - 7.00"]
    assert loaded.clamped == 1
    (late_line, late), (broken_line, broken) = reasons(loaded)
    assert (late_line, broken_line) == (3, 4)
    assert "after the end of the video" in late and "broken" in broken


def test_a_score_that_looks_like_a_window_is_not_clamped(root):
    row = EVIDENT | {"answer": "1-30", "answer_kind": "score"}
    (task,) = load_tasks("dm_rl", write(root, row), duration_of=lambda _: 9.0).tasks
    assert task.answer == "1-30"


def test_an_answer_of_which_the_clip_leaves_nothing_is_the_rows_fault(root):
    row = EVIDENT | {"answer": "7.9999999999 - 9"}
    ((_, reason),) = reasons(load_tasks("dm_rl", write(root, row), duration_of=lambda _: 8.0))
    assert "nothing is left of the answer" in reason


def test_a_file_or_format_that_does_not_exist_is_a_clear_error(root):
    with pytest.raises(DatasetError, match="known: charades_sta, csv, dm_cot, dm_rl, parquet"):
        load_tasks("other", root / "rows")
    with pytest.raises(DatasetError, match=r"none.jsonl: no such annotation file"):
        load_tasks("dm_rl", root / "none.jsonl")
    with pytest.raises(DatasetError, match="no such folder of videos"):
        load_tasks("dm_rl", write(root, DM_RL), root / "nowhere")
    with pytest.raises(DatasetError, match="holds no traces"):
        load_traces("dm_rl", write(root, DM_RL))


@given(n=st.integers(1, 20), seed=st.integers(0, 3), cuts=st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_every_epoch_holds_every_task_once_however_steps_cut_it(n, seed, cuts):
    tasks, epochs = list(range(n)), 3
    streams = []
    for tasks_per_step in cuts:
        steps = -(-epochs * n // tasks_per_step)
        drawn = [task for step in range(steps) for task in tasks_for_step(tasks, seed, step, tasks_per_step)]
        streams.append(drawn[: epochs * n])
    assert all(stream == streams[0] for stream in streams)
    assert all(sorted(streams[0][epoch * n : (epoch + 1) * n]) == tasks for epoch in range(epochs))


@given(resumes=st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_any_split_of_a_run_into_resumes_sees_the_same_tasks(resumes):
    tasks = list(range(7))
    straight = [tasks_for_step(tasks, 1, step, 3) for step in range(sum(resumes))]
    pieces, step = [], 0
    for length in resumes:
        pieces += [tasks_for_step(tasks, 1, s, 3) for s in range(step, step + length)]
        step += length
    assert pieces == straight


def test_epochs_and_seeds_differ_in_order():
    tasks = list(range(50))
    assert len({tasks_for_step(tasks, seed, step, 50) for seed in (0, 1) for step in (0, 1)}) == 4
    with pytest.raises(ValueError, match="no tasks"):
        tasks_for_step([], 0, 0, 1)


@pytest.mark.real_data
def test_the_published_samples_load(real_data_dir):
    sample = real_data_dir / "dynframe_sample"
    tasks = load_tasks("dm_rl", sample / "dm_rl.jsonl")
    assert (len(tasks.tasks), tasks.rejected) == (2, ())
    assert {task.answer_kind for task in tasks.tasks} == {AnswerKind.SPAN}
    (trace,) = load_traces("dm_cot", sample / "dm_cot.json").traces
    assert trace.task.evidence_span == TimeSpan(56.47, 61.72)
    train = load_tasks("charades_sta", real_data_dir / "charades_sta" / "charades_sta_train.txt", sample / "videos")
    reversed_rows = [row for row in train.rejected if "reversed" in row.reason]
    assert len(train.tasks) + len(train.rejected) == 12_408
    assert len(reversed_rows) == 4
