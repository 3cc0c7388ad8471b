"""Two phases: the example project learns, with a judge beside its own rewards; another run begins with its weights."""

import json
import os
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

from benchmarks.judge_server import hangs, judge_server, says
from rl.report.run_files import read_ancestry
from rl.user_code.loading import load_object
from rl.user_code.reference import parse_reference
from tests.calibration import within
from tests.canary import CANARY, SECRETS, holding_a_secret
from tests.terminal import strange_lines

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.deepspeed]

REPOSITORY = Path(__file__).parents[1]
PROJECT = REPOSITORY / "examples" / "my_project"
FILES = ("configs/quickstart.yaml", "examples/my_project/my_project.yaml")
SMALL = (
    *("learner.num_ranks=1", "rollout.num_workers=1", "rollout.tasks_per_step=2", "rollout.group_size=4"),
    *("trainer.eval_tasks=0", "placement.dashboard=false"),
)


def dynframe(home, command, *arguments):
    """What the command prints, in an environment full of secrets."""
    places = (f"output_dir={home}/runs", f"cache_dir={home}/cache")
    answer = subprocess.run(
        [sys.executable, "-m", "rl", command, *arguments, *SMALL, *places],
        cwd=REPOSITORY,
        env=os.environ | SECRETS | {"COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=within(420),
    )
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
    assert command != "train" or strange_lines(answer.stdout + answer.stderr) == []
    return answer.stdout


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("phases")


@pytest.fixture(scope="module")
def lamps(home):
    """Overrides that name the project's data, a few clips of them."""
    folder = home / "lamps"
    make = load_object("make", parse_reference(f"{PROJECT / 'make_data.py'}:make"), "function")
    make(folder, train=12, held_out=4)
    train, held_out = folder / "train.tsv", folder / "held_out.tsv"
    paths = {"data.train": train, "cold_start.traces": train, "data.held_out": held_out, "evaluation": held_out}
    return [f"{key}.path={path}" for key, path in paths.items()]


@pytest.fixture(scope="module")
def first(home, lamps):
    """The folder of a run of two steps, and what its judge was asked: every second answer about a lamp hangs."""
    numbers, scores = count(), says("It says the same.\nScore: 5")

    def chosen(body):
        return hangs if b"the lamp" in body and next(numbers) % 2 else scores

    with judge_server(chosen_by=chosen) as (url, asked):
        told = f"model: lamps, url: '{url}', key_env: OPENAI_API_KEY, timeout_s: 2, retries: 0, cache_dir: ''"
        judged = f"rewards.judged={{fn: judge, segment: reasoning, weight: 1.0, args: {{{told}}}}}"
        trained = ("trainer.steps=2", "cold_start.steps=90", "cold_start.batch_size=8")
        dynframe(home, "train", *FILES, *lamps, judged, *trained)
    return home / "runs" / "lamps", asked


def test_a_judge_is_asked_about_every_answer_and_where_it_hangs_the_trajectory_is_masked_and_no_zero(first):
    run, asked = first
    records = [record for file in sorted((run / "trajectories").iterdir()) for record in lines_of(file)]
    judged = [record for record in records if "judged" in record["rewards"].get("terms", {})]
    hung = [record for record in records if "failed" in record["rewards"]]
    assert len(records) == 16 and len(judged) >= 2 and len(hung) >= 2
    assert {record["rewards"]["terms"]["judged"] for record in judged} <= {0.5, 0.0}  # 0: no answer
    assert {record["rewards"]["failed"]["term"] for record in hung} == {"judged"}
    assert all(turn["advantage"] is None for record in hung for turn in record["turns"])
    steps = lines_of(run / "metrics.jsonl")
    assert sum(step["reward/failed"] for step in steps) == len(hung)
    about_lamps = [request for request in asked.requests if "the lamp" in str(request)]
    assert len(about_lamps) // 2 == len(hung)


def test_the_judges_key_reached_the_judge_and_no_file(first, home):
    _, asked = first
    assert set(asked.keys) == {f"Bearer {CANARY}-OPENAI_API_KEY"}
    assert holding_a_secret(home) == []


def test_numbers_of_the_judge_and_of_the_projects_own_rewards_and_tool_are_metrics(first):
    run, _ = first
    steps = lines_of(run / "metrics.jsonl")
    assert [step["step"] for step in steps] == [1, 2]
    names = set().union(*steps)
    assert {"reward/term/lit", "reward/term/thrift", "reward/term/judged"} <= names
    assert {"reward/number/judged/latency_s", "reward/number/judged/prompt_tokens"} <= names
    assert any(name.startswith("rollout/tool/moment") for name in names)


def test_the_projects_own_benchmark_measures_the_run(first, home, lamps):
    run, _ = first
    said = dynframe(home, "eval", *FILES, *lamps, "--run", run)
    report = json.loads((run / "eval" / "lamps" / "metrics.json").read_text())
    assert "lamps: 4 examples" in said and report["metrics"]["accuracy"]["n"] == 4


@pytest.fixture(scope="module")
def second(first, home):
    """The folder of a run of one step on other data that begins with the first one's weights."""
    begun = (f"init_from={first[0]}", "cold_start.enabled=false", "name=second", "trainer.steps=1")
    data = ("data.quickstart.train_clips=4", "data.quickstart.held_out_clips=2")
    dynframe(home, "train", FILES[0], *begun, *data)
    return home / "runs" / "second"


def test_a_second_phase_has_the_weights_of_the_first_and_nothing_else_of_it(first, second, home):
    (ancestor,) = read_ancestry(second)
    assert ancestor[1].startswith("lamps, step 2, weights ")
    policy = Path("policy") / "model.safetensors"
    (kept,) = (home / "cache").glob("init-*/model.safetensors")
    assert kept.read_bytes() == (first[0] / "checkpoints" / "step_00000002" / policy).read_bytes()
    assert kept.read_bytes() != (second / "checkpoints" / "step_00000001" / policy).read_bytes()
    (step,) = lines_of(second / "metrics.jsonl")
    assert (step["step"], step["policy/version"], step["reward/failed"]) == (1, 1, 0)
