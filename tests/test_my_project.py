"""The example project: its data are read, its tool inserts, its rewards score, its benchmark counts in a run."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from envs.benchmarks.benchmark import Prediction
from envs.benchmarks.registry import resolve
from envs.data.dataset import load_tasks, load_traces
from envs.tools.rules import RetrievalRules
from envs.tools.users import load_tools
from rl.trajectory import MalformedCall, RefusedCall, RetrievalCall, TimeSpan, ToolCall
from rl.user_code.loading import load_object
from rl.user_code.reference import parse_reference

REPOSITORY = Path(__file__).parents[1]
PROJECT = REPOSITORY / "examples" / "my_project"


@pytest.fixture(scope="module")
def lamps(tmp_path_factory):
    """The project's data, a few clips of them."""
    folder = tmp_path_factory.mktemp("lamps")
    make = load_object("make", parse_reference(f"{PROJECT / 'make_data.py'}:make"), "function")
    make(folder, train=12, held_out=4)
    return folder


def test_its_rows_become_tasks_with_evidence_and_its_own_columns(lamps):
    loaded = load_tasks(f"{PROJECT / 'my_project.py'}:reader", lamps / "train.tsv")
    assert loaded.rejected == () and len(loaded.tasks) == 12
    task = loaded.tasks[0]
    assert task.answer in ("red", "green", "blue") and task.extra == {"lit_s": 1.0}
    assert task.evidence_span.length_s == 1.0 and task.task_id == "train:2"


def test_its_traces_ask_for_moments_and_windows_by_turns_as_its_tool_and_the_built_in_one_read_them(lamps):
    (moment,) = load_tools(RetrievalRules(tools=(f"{PROJECT / 'my_project.py'}:Moment",)))
    traces = load_traces(f"{PROJECT / 'my_project.py'}:traces", lamps / "train.tsv")
    assert traces.rejected == () and len(traces.traces) == 12
    asked = [trace.replies[0] for trace in traces.traces]
    clip = SimpleNamespace(duration_s=6.0)
    calls = [moment.parse(reply, clip) for reply in asked if reply.endswith("</at>")]
    assert len(calls) == 6 and all(reply.endswith(("</at>", "</fps>")) for reply in asked)
    assert all(isinstance(call, ToolCall) and call.num_frames == 1 for call in calls)
    refused = [moment.parse(f"<at>{text}</at>", clip) for text in ("6.5", "soon")]
    assert [type(call) for call in refused] == [RefusedCall, MalformedCall]


def test_its_reward_of_moments_is_whether_the_lamp_was_lit(lamps):
    lit = load_object("lit", parse_reference(f"{PROJECT / 'my_project.py'}:lit"), "function")
    (task, *_) = load_tasks(f"{PROJECT / 'my_project.py'}:reader", lamps / "train.tsv").tasks
    start_s, end_s = task.evidence_span.start_s, task.evidence_span.end_s
    moments = [ToolCall("moment", {"time_s": time_s}) for time_s in (start_s - 0.1, start_s, end_s - 0.1, end_s)]
    assert [lit(task, call) for call in moments] == [0.0, 1.0, 1.0, 0.0]


def test_its_reward_of_looks_prefers_looks_as_short_as_the_event(lamps):
    thrift = load_object("thrift", parse_reference(f"{PROJECT / 'my_project.py'}:thrift"), "function")
    (task, *_) = load_tasks(f"{PROJECT / 'my_project.py'}:reader", lamps / "train.tsv").tasks
    looks = [RetrievalCall(span, 4.0, span, 4.0, 4) for span in (TimeSpan(0, 1), TimeSpan(0, 3.5), TimeSpan(0, 6))]
    assert [thrift(task, look) for look in looks] == [1.0, 0.5, 0.0]


def test_its_benchmark_reads_the_same_table_and_counts_a_missing_prediction(lamps):
    benchmark = resolve(f"{PROJECT / 'my_project.py'}:LAMPS")
    loaded = benchmark.read(lamps / "held_out.tsv", lamps)
    assert len(loaded.examples) == 4 and loaded.rejected == ()
    example = loaded.examples[0]
    right = Prediction(example.task.answer, example.windows)
    assert benchmark.score(example, right) == {"accuracy": 1.0, f"accuracy/{example.group}": 1.0, "miou": 1.0}
    assert set(benchmark.score(example, None).values()) == {0.0}
    (lamps / "clips" / "held_out0.mp4").rename(lamps / "clips" / "away.mp4")
    try:
        assert [row.missing for row in benchmark.read(lamps / "held_out.tsv", lamps).rejected] == [
            "clips/held_out0.mp4"
        ]
    finally:
        (lamps / "clips" / "away.mp4").rename(lamps / "clips" / "held_out0.mp4")


@pytest.mark.cli
def test_a_run_would_take_all_of_it(lamps, tmp_path):
    where = [f"data.train.path={lamps}/train.tsv", f"data.held_out.path={lamps}/held_out.tsv"]
    where += [f"cold_start.traces.path={lamps}/train.tsv", f"evaluation.path={lamps}/held_out.tsv"]
    where += [f"output_dir={tmp_path}/runs", f"cache_dir={tmp_path}/cache"]
    files = ["configs/quickstart.yaml", "examples/my_project/my_project.yaml"]
    answer = subprocess.run(
        [sys.executable, "-m", "rl", "check", *files, *where, "--json"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=420,
    )
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
    findings = {finding["subject"]: finding for finding in json.loads(answer.stdout.splitlines()[-1])["findings"]}
    assert findings["data.train"]["detail"].startswith("12 tasks") and findings["rewards.thrift"]["level"] == "ok"
    assert findings["rewards.lit"]["level"] == findings["retrieval.tools"]["level"] == "ok"
