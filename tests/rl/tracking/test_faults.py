"""What broke and was recovered is on record, line by line, and no line costs another."""

import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from rl.run.reporter import conclude
from rl.tracking.faults import FAULTS, fault_counts, fault_metrics, read_faults, write_faults
from rl.tracking.metrics import describe
from rl.tracking.sinks import JsonlSink, MetricLog
from rl.tracking.summary import summarise
from rl.trajectory import Fault

DIED = Fault("worker_died", "rollout/0", "killed by signal 9", "replaced; 3 groups went on elsewhere", 1.76e9, 21.4)
HUNG = Fault("worker_hung", "rollout/1", "nothing advanced for 10 s", "killed and replaced", 1.76e9 + 60, 12.0)


def test_a_fault_is_a_line_with_the_step_it_happened_in(tmp_path):
    write_faults(tmp_path, 12, [DIED])
    assert json.loads((tmp_path / FAULTS).read_text()) == {
        "step": 12,
        "kind": "worker_died",
        "worker": "rollout/0",
        "cause": "killed by signal 9",
        "action": "replaced; 3 groups went on elsewhere",
        "detected_s": 1.76e9,
        "recovery_s": 21.4,
    }


def test_a_run_without_faults_has_no_file_of_them(tmp_path):
    write_faults(tmp_path, 1, [])
    assert list(tmp_path.iterdir()) == [] and read_faults(tmp_path) == []


def test_lines_are_only_ever_added_so_that_a_repeated_step_keeps_what_happened_in_it(tmp_path):
    write_faults(tmp_path, 7, [DIED])
    write_faults(tmp_path, 7, [HUNG, DIED])
    assert [(fault["step"], fault["kind"]) for fault in read_faults(tmp_path)] == [
        (7, "worker_died"),
        (7, "worker_hung"),
        (7, "worker_died"),
    ]


def test_a_line_torn_by_a_kill_costs_itself_and_not_the_one_after_it(tmp_path):
    write_faults(tmp_path, 1, [DIED])
    with (tmp_path / FAULTS).open("a") as file:
        file.write('{"step": 2, "kind": "worker_d')  # the driver was killed here
    write_faults(tmp_path, 3, [HUNG])
    assert [fault["step"] for fault in read_faults(tmp_path)] == [1, 3]
    assert len((tmp_path / FAULTS).read_text().splitlines()) == 3  # what was torn is still there to be seen


@pytest.mark.parametrize(
    "line", [b"", b"null", b"[1, 2]", b'"text"', b"{}", b'{"step": 1}', b'{"kind": "a"}', b"\xff\xfe", b"[" * 100_000]
)
def test_what_is_no_fault_is_left_out(tmp_path, line):
    write_faults(tmp_path, 1, [DIED])
    with (tmp_path / FAULTS).open("ab") as file:
        file.write(line + b"\n")
    write_faults(tmp_path, 2, [HUNG])
    assert [fault["step"] for fault in read_faults(tmp_path)] == [1, 2]


TEXTS = st.text(st.characters(exclude_categories=()))  # lone surrogates and line separators too


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**53), TEXTS, TEXTS, st.floats()), max_size=4))
def test_whatever_a_cause_says_is_read_back_as_it_was(rows):
    written = [(step, Fault("worker_died", worker, cause, "", 0.0, recovery)) for step, worker, cause, recovery in rows]
    with TemporaryDirectory() as folder:
        for step, fault in written:
            write_faults(Path(folder), step, [fault])
        found = read_faults(Path(folder))
    told = [(each["step"], each["worker"], each["cause"], repr(each["recovery_s"])) for each in found]
    assert told == [(step, fault.worker, fault.cause, repr(fault.recovery_s)) for step, fault in written]


def test_a_step_counts_its_faults_by_kind_under_declared_names():
    counted = fault_metrics([DIED, HUNG, DIED])
    assert counted == {"faults/worker_died": 2.0, "faults/worker_hung": 1.0}
    assert all(describe(name)[0] == "faults" for name in counted)
    assert fault_metrics([]) == {}


def test_a_run_counts_its_faults_by_kind_the_most_frequent_first(tmp_path):
    write_faults(tmp_path, 1, [HUNG, DIED])
    write_faults(tmp_path, 2, [DIED])
    assert list(fault_counts(tmp_path).items()) == [("worker_died", 2), ("worker_hung", 1)]


@pytest.fixture
def run(tmp_path):
    log = MetricLog([JsonlSink(tmp_path, keep_through_step=0)])
    numbers = {"reward/failed": 0.0, "rollout/video_errors": 0.0, "seconds/step": 1.0, "policy/version": 1.0}
    log.write(1, numbers | {"faults/worker_died": 1.0})
    log.close()
    return tmp_path


def concluded(run):
    said = io.StringIO()
    conclude(run, Console(file=said, width=200))
    return json.loads((run / "summary.json").read_text()), said.getvalue()


def test_the_summary_counts_faults_of_repeated_steps_too(run):
    write_faults(run, 1, [DIED])  # in metrics.jsonl step 1 is the one that was repeated
    write_faults(run, 1, [DIED])
    assert summarise(run)["faults"] == {"worker_died": 2}


def test_a_run_says_at_its_end_which_faults_it_recovered_from(run):
    write_faults(run, 1, [DIED, HUNG, DIED])
    summary, said = concluded(run)
    assert summary["faults"] == {"worker_died": 2, "worker_hung": 1}
    assert "faults recovered: 2 worker_died, 1 worker_hung (faults.jsonl)\n" in said


def test_a_run_without_faults_says_nothing_of_them(run):
    summary, said = concluded(run)
    assert summary["faults"] == {} and "recovered" not in said
