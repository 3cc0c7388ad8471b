"""A run's folder is read whatever state it is in: what is broken costs itself, and is listed."""

import json

import pytest

from rl.config.errors import ConfigError
from rl.report.evaluations import read_evaluations
from rl.report.fault_log import MOST_FAULT_STEPS, MOST_FAULTS, MOST_KINDS, read_fault_log
from rl.report.run_files import open_run, read_config, read_metrics, read_summary, step_files


def write_lines(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def test_metrics_become_columns_and_a_step_and_its_evaluation_one_row(tmp_path):
    write_lines(
        tmp_path / "metrics.jsonl",
        {"step": 0, "time_s": 1.0, "held_out/accuracy": 0.5},
        {"step": 1, "time_s": 2.0, "reward/sampling": 0.25},
        {"step": 1, "time_s": 3.0, "held_out/accuracy": 0.75},
    )
    table = read_metrics(tmp_path)
    assert table.steps_S == (0, 1)
    assert table.columns == {"held_out/accuracy": (0.5, 0.75), "reward/sampling": (None, 0.25)}


def test_a_run_of_0_3_0_is_shown_by_the_metric_names_of_today(tmp_path):
    write_lines(
        tmp_path / "metrics.jsonl",
        {"step": 0, "time_s": 1.0, "held_out/calls": 0.75, "held_out/tasks": 8.0},
        {"step": 1, "time_s": 2.0, "rollout/calls": 0.5, "rollout/malformed": 0.25, "group/degenerate_both": 0.0},
        {"step": 2, "time_s": 3.0, "rollout/granted_calls": 1.0},  # resumed since
    )
    table = read_metrics(tmp_path)
    assert table.columns["rollout/granted_calls"] == (None, 0.5, 1.0)
    assert table.columns["held_out/granted_calls"] == (0.75, None, None)
    assert {"rollout/malformed_calls", "group/zero_variance_both"} <= table.columns.keys()
    assert not {"rollout/calls", "held_out/calls", "rollout/malformed"} & table.columns.keys()


def test_numbers_that_are_not_finite_stay_what_they_are(tmp_path):
    write_lines(tmp_path / "metrics.jsonl", {"step": 1, "grad/norm": "inf"}, '{"step": 2, "grad/norm": NaN}\n')
    assert read_metrics(tmp_path).columns["grad/norm"] == ("inf", "nan")


def test_a_column_of_texts_such_as_fingerprints_is_no_curve_and_keeps_its_last_text(tmp_path):
    write_lines(
        tmp_path / "metrics.jsonl",
        {"step": 1, "state/hash": "sha256:00e1", "policy/entropy": 2.0},
        {"step": 2, "state/hash": "sha256:1234", "policy/entropy": "inf", "parity/max/all": "nan"},
        {"step": 3, "policy/entropy": 1.0},
    )
    table = read_metrics(tmp_path)
    assert table.texts == {"state/hash": "sha256:1234"}
    assert table.columns == {"policy/entropy": (2.0, "inf", 1.0), "parity/max/all": (None, "nan", None)}


def test_a_text_where_numbers_are_expected_stays_in_its_place(tmp_path):
    write_lines(tmp_path / "metrics.jsonl", {"step": 1, "grad/norm": 0.5}, {"step": 2, "grad/norm": "damaged"})
    table = read_metrics(tmp_path)
    assert table.columns == {"grad/norm": (0.5, "damaged")} and table.texts == {}


def test_broken_lines_are_skipped_and_listed_with_their_place(tmp_path):
    write_lines(
        tmp_path / "metrics.jsonl",
        {"step": 1, "policy/entropy": 2.0},
        "[1, 2]\n",
        '{"policy/entropy": 1.0}\n',
        "\n",
        "[" * 100_000 + "\n",  # too deep for any parser
        '{"step": 2, "policy/entr',  # torn off, as by a full disk
    )
    table = read_metrics(tmp_path)
    assert table.columns == {"policy/entropy": (2.0,)}
    assert [broken.place for broken in table.broken] == [f"metrics.jsonl:{line}" for line in (2, 3, 5, 6)]


def test_a_line_separator_inside_a_text_does_not_cut_the_line(tmp_path):
    write_lines(tmp_path / "metrics.jsonl", '{"step": 1, "policy/entropy": 1.0, "note": "a\u2028b"}\n')
    table = read_metrics(tmp_path)
    assert table.steps_S == (1,) and not table.broken


def test_records_are_listed_by_step_with_evaluations_after_the_step_they_follow(tmp_path):
    for name in ("trajectories/step_000002.jsonl", "trajectories/step_000010.jsonl", "held_out/step_000002.jsonl"):
        write_lines(tmp_path / name)
    write_lines(tmp_path / "trajectories/notes.txt")
    assert [file.id for file in step_files(tmp_path)] == ["2", "h2", "10"]


def test_the_configuration_is_flat_and_one_that_cannot_be_read_is_listed_as_broken(tmp_path):
    write_lines(tmp_path / "config.yaml", "rollout:\n  group_size: 8\n  stop: []\nname: a\n")
    assert read_config(tmp_path) == ([("rollout.group_size", "8"), ("rollout.stop", "[]"), ("name", "a")], [])
    write_lines(tmp_path / "config.yaml", "a: [unclosed\n")
    flat, (broken,) = read_config(tmp_path)
    assert flat == [] and broken.place == "config.yaml"


def test_an_evaluation_says_which_numbers_are_comparable_with_published_ones(tmp_path):
    metrics = {"accuracy": {"value": 0.5}, "official/accuracy": {"value": 0.25}, "of 0.4.0": {"value": 1.0}}
    published = {
        "accuracy": {"comparable": False, "why_not": "reads lower case", "printed": None},
        "official/accuracy": {"comparable": True, "why_not": None, "printed": "25.0"},
    }
    report = {"benchmark": "video_mme", "metrics": metrics, "published": published}
    write_lines(tmp_path / "eval/video_mme/metrics.json", report)
    rows, broken = read_evaluations(tmp_path)
    assert [(row.comparable, row.why_not, row.printed) for row in rows] == [
        (False, "reads lower case", None),
        (True, None, "25.0"),
        (None, None, None),
    ]
    write_lines(tmp_path / "eval/video_mme/metrics.json", report | {"published": [1]})
    assert broken == [] and len(read_evaluations(tmp_path)[1]) == 1  # no object where one is expected


def test_evaluations_are_rows_with_intervals_and_foreign_files_are_listed_as_broken(tmp_path):
    metrics = {"mIoU": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10}, "R1@0.5": {"value": 0.25}}
    write_lines(tmp_path / "eval/charades/metrics.json", {"benchmark": "charades_sta", "metrics": metrics})
    write_lines(tmp_path / "eval/other/metrics.json", {"scores": 1})
    rows, (broken,) = read_evaluations(tmp_path)
    first, second = rows
    assert (first.benchmark, first.metric, first.value, first.low, first.high, first.count) == (
        ("charades (charades_sta)", "mIoU", 0.5, 0.4, 0.6, 10)
    )
    assert (second.value, second.low, second.count) == (0.25, None, None)
    assert broken.place == "eval/other/metrics.json"


def test_a_run_that_has_only_begun_has_no_summary_and_no_metrics(tmp_path):
    assert read_summary(tmp_path) == ({}, []) and read_metrics(tmp_path).steps_S == ()


def test_a_torn_summary_is_listed_as_broken(tmp_path):
    (tmp_path / "summary.json").write_text('{"steps": 1')
    summary, (broken,) = read_summary(tmp_path)
    assert summary == {} and broken.place == "summary.json"


@pytest.mark.parametrize(("folder", "message"), [("absent", "no such run"), (".", "not a run")])
def test_what_is_no_run_is_refused_with_what_to_give(tmp_path, folder, message):
    with pytest.raises(ConfigError, match=message):
        open_run(tmp_path / folder)


def fault(step, kind="worker_died", **more):
    line = {"worker": "rollout/0", "cause": "signal 9", "action": "replaced", "detected_s": 1e9, "recovery_s": 2.5}
    return {"step": step, "kind": kind} | line | more


def test_faults_are_counted_by_kind_and_step_and_listed_newest_first(tmp_path):
    write_lines(
        tmp_path / "faults.jsonl",
        fault(3, detected_s=30.0),
        fault(3, "worker_hung", detected_s=10.0),  # written later, noticed before
        fault(2, detected_s=40.0),  # a step that was repeated
    )
    log = read_fault_log(tmp_path)
    assert (log.count, dict(log.steps)) == (3, {2: 1, 3: 2})
    assert list(log.kinds.items()) == [("worker_died", 2), ("worker_hung", 1)]
    assert [(row.step, row.kind) for row in log.newest] == [(2, "worker_died"), (3, "worker_died"), (3, "worker_hung")]
    assert (log.newest[0].worker, log.newest[0].recovery_s) == ("rollout/0", 2.5)


def test_a_fault_that_lost_a_worker_tells_where_it_ran_and_how_its_log_ends(tmp_path):
    lost = {"worker": "NAME/rollout/0", "node": "10.0.0.2", "pid": 7, "log": "/tmp/w.out", "last_lines": ["a", "b"]}
    write_lines(tmp_path / "faults.jsonl", fault(1, failure=lost), fault(2), fault(3, failure=["not", "one"]))
    told = [row.failure for row in read_fault_log(tmp_path).newest]
    assert sorted(told) == [
        "",
        "",
        "NAME/rollout/0, process 7 on node 10.0.0.2; its log: /tmp/w.out, which ends with\n  | a\n  | b",
    ]


def test_a_run_without_faults_has_none(tmp_path):
    log = read_fault_log(tmp_path)
    assert (log.count, log.kinds, log.steps, log.newest, log.broken) == (0, {}, {}, (), ())


def test_lines_that_are_no_faults_are_listed_as_broken_and_odd_values_are_left_open(tmp_path):
    write_lines(
        tmp_path / "faults.jsonl",
        fault(1, cause=["not", "text"], worker=None, detected_s="yesterday", recovery_s="inf"),
        {"kind": "worker_died"},
        fault(-1),
        fault(2, 7),
        fault(2, ""),
        '{"step": 3, "kind": "worker_d',
    )
    log = read_fault_log(tmp_path)
    assert [broken.place for broken in log.broken] == [f"faults.jsonl:{line}" for line in (2, 3, 4, 5, 6)]
    (row,) = log.newest
    assert (row.cause, row.worker, row.detected_s, row.recovery_s) == ("", "", None, None)


def test_of_many_faults_the_newest_are_listed_and_all_are_counted(tmp_path):
    many = MOST_FAULT_STEPS + 10
    write_lines(tmp_path / "faults.jsonl", *(fault(step, f"kind_{step % 50}", detected_s=step) for step in range(many)))
    log = read_fault_log(tmp_path)
    assert (log.count, len(log.newest), len(log.steps), len(log.kinds)) == (
        many,
        MOST_FAULTS,
        MOST_FAULT_STEPS,
        MOST_KINDS,
    )
    assert (log.newest[0].step, log.newest[-1].step, min(log.steps)) == (many - 1, many - MOST_FAULTS, 10)


def test_a_fault_with_an_endless_cause_is_cut_short(tmp_path):
    write_lines(tmp_path / "faults.jsonl", fault(1, "k" * 10**6, cause="c" * 10**6, worker="w" * 10**6))
    (row,) = read_fault_log(tmp_path).newest
    assert (len(row.kind), len(row.worker), len(row.cause)) == (40, 60, 300)
