"""The chaos command: what it changes of a configuration, what it observes of a run, and what it reports."""

import io
import json
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from rl.cli.main import app
from rl.config.file import load_config, to_dict
from rl.fault_injection.artifacts import BY_FAULT, BY_ITSELF, HUNG, STOPPED, Launch, RunArtifacts, read_artifacts
from rl.fault_injection.chaos import Experiment, chaos_config, rules_of
from rl.fault_injection.experiment import RunUnderTest
from rl.fault_injection.inject import Injection
from rl.fault_injection.invariants import check_invariants, matches_reference
from rl.fault_injection.launch import last_step
from rl.fault_injection.recovery import RECOVERED, UNDETECTED, Recovery, recoveries
from rl.fault_injection.result import ExperimentResult, print_result, rows
from rl.fault_injection.schedule import WITHOUT_NODES, PlannedFault, schedule
from rl.run.resume import changed_meaning
from rl.trajectory import AnswerKind, VideoTask

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
CONFIG = load_config([QUICKSTART])


def injection(fault_type, time_s):
    return Injection(time_s, fault_type, 42, "ray::RolloutWorker", "rollout/0")


def launch(started_s, first_step_s):
    return Launch(started_s, first_step_s, started_s + 50.0, BY_FAULT, -9, 0.0, 3, 3, [])


@pytest.fixture
def result(tmp_path):
    """Two workers killed, one of them recovered; a run killed at 130 and back with its first step at 160."""
    killed = (injection("rollout_killed", 100.0), injection("rollout_killed", 110.0))
    injections = (*killed, injection("run_killed", 130.0))
    launches = (launch(80.0, 90.0), launch(131.0, 160.0))
    artifacts = RunArtifacts(({"step": 1, "policy/version": 1.0},), {}, (), injections, launches)
    matched = (Recovery(killed[0], RECOVERED, 2.0, 20.0), Recovery(killed[1], UNDETECTED))
    return ExperimentResult(
        tmp_path, 70.0, 3, artifacts, matched, {"steps": [], "faults": ["rollout_killed: not detected"]}
    )


def test_the_run_under_test_is_the_configured_one_but_endless_saved_and_recorded_in_full(tmp_path):
    declared = chaos_config(CONFIG, output_dir=tmp_path)
    assert declared.trainer.steps >= 100_000 and declared.trainer.save_every == 1
    assert declared.logging.trajectories_per_step == CONFIG.rollout.group_size * CONFIG.rollout.tasks_per_step
    assert declared.video.decode_workers == 1 and declared.placement.dashboard is False
    changed = changed_meaning(to_dict(CONFIG), to_dict(declared))
    assert changed == ["learner.optimizer.warmup_fraction: 0.05 -> 0.0"]


def test_deadlines_are_shortened_unless_the_user_has_set_them(tmp_path):
    short = chaos_config(CONFIG, output_dir=tmp_path)
    deadlines = short.video.decode_stall_timeout_s, short.rollout.stall_timeout_s, short.learner.timeout_s
    assert deadlines == (10.0, 30.0, 60.0)
    configured = load_config(
        [QUICKSTART], ["video.decode_stall_timeout_s=45", "learner.timeout_s=900", "rewards.answer.weight=1"]
    )
    kept = chaos_config(configured, output_dir=tmp_path)
    deadlines = kept.video.decode_stall_timeout_s, kept.rollout.stall_timeout_s, kept.learner.timeout_s
    assert deadlines == (45.0, 55.0, 900.0)


def test_a_hang_may_go_undetected_for_as_long_as_its_deadline(tmp_path):
    """Rollout: 30 s without progress, or 60 s for its counters if it is idle; rewards: 8 siblings of 5 s, and 5 s."""
    rules = rules_of(chaos_config(CONFIG, output_dir=tmp_path), lambda step, attempt: ())
    assert rules.hung_s == {"rollout": 90.0, "reward": 45.0, "learner": 60.0}


def test_the_last_step_is_read_from_the_end_of_the_file_and_a_torn_line_is_passed_over(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    assert last_step(metrics) == (0, 0.0)
    metrics.write_text(
        "".join(json.dumps({"step": i, "time_s": 10.0 * i, "x": "y" * 9000}) + "\n" for i in range(1, 40))
    )
    assert last_step(metrics) == (39, 390.0)
    with metrics.open("a") as file:
        file.write('{"step": 40, "time')
    assert last_step(metrics) == (39, 390.0)


def test_seconds_are_listed_by_fault_type_and_those_of_a_run_are_taken_from_its_launches(result):
    worker, run = rows(result.artifacts, result.recoveries)
    assert (worker.fault_type, worker.injected, worker.recovered) == ("rollout_killed", 2, 1)
    assert (worker.detection_max_s, worker.recovery_median_s) == (2.0, 20.0)
    assert (run.fault_type, run.injected, run.recovered, run.recovery_max_s) == ("run_killed", 1, 1, 30.0)


def test_the_result_is_a_table_and_a_sentence(result):
    console = Console(file=io.StringIO(), width=120)
    print_result(result, console)
    printed = console.file.getvalue()
    assert "rollout_killed" in printed and "faults: violated 1 times" in printed and "steps: held" in printed
    assert "3 steps in 70 s, 3 faults injected: NOT all invariants held" in printed


RUN = '''
"""A run in small: steps, records and checkpoints like a real one's, and a reward worker that is replaced if it dies."""

import json, signal, subprocess, sys, time
from pathlib import Path

import yaml

from rl.checkpoint.store import CheckpointStore
from rl.trajectory import RunState

settings = yaml.safe_load(Path(sys.argv[1]).read_text())
home = Path(settings["output_dir"]) / settings["name"]
(home / "trajectories").mkdir(parents=True, exist_ok=True)
store, metrics = CheckpointStore(home, keep=3), home / "metrics.jsonl"
found = store.latest_valid()
first = found.state.step if found else 0
lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
metrics.write_text("".join(line for line in lines if json.loads(line)["step"] <= first))

stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
def start_worker():
    return subprocess.Popen(["ray::reward/0:RewardWorker", "600"], executable="/bin/sleep")

def roll_out(step):
    for group, task in enumerate(["a", "b"]):
        for sibling in range(2):
            turns = [{"policy_version": step - 1}]
            record = {"group": group, "sibling": sibling, "task": {"id": task}, "turns": turns, "rewards": {}}
            yield json.dumps(record) + "\\n"

worker = start_worker()
for step in range(first + 1, settings["trainer"]["steps"] + 1):
    time.sleep(0.05)  # the work of a step
    if worker.poll() is not None:
        fault = {"step": step, "kind": "worker_died", "worker": "reward/0", "cause": "SIGKILL", "action": "replaced"}
        fault |= {"detected_s": time.time(), "recovery_s": 0.0}
        worker = start_worker()
        with (home / "faults.jsonl").open("a") as file:
            file.write(json.dumps(fault) + "\\n")
    (home / "trajectories" / f"step_{step:06d}.jsonl").write_text("".join(roll_out(step)))
    with metrics.open("a") as file:
        line = {"step": step, "time_s": time.time(), "policy/version": step, "seconds/step": 0.05}
        file.write(json.dumps(line | {"state/hash": str(step)}) + "\\n")
    store.commit(store.begin(step), RunState(step, step, 0), "seed: 0")
    if stopping:
        break
worker.kill()
worker.wait()
sys.exit(143 if stopping else 0)
'''


@pytest.fixture
def run_under_test(tmp_path, monkeypatch):
    """A run in small, in place of `dynframe train`."""

    @contextmanager
    def launched_in_small(settings, output):
        with output.open("ab") as printed:
            command = [sys.executable, "-c", RUN, str(settings)]
            yield subprocess.Popen(command, cwd=QUICKSTART.parents[1], stdout=printed, stderr=printed)

    monkeypatch.setattr("rl.fault_injection.experiment.launched", launched_in_small)
    declared = chaos_config(CONFIG, output_dir=tmp_path)
    rollout = replace(declared.rollout, tasks_per_step=2, group_size=2)
    rules = replace(rules_of(declared, tasks_for), group_size=2)
    return RunUnderTest(replace(declared, rollout=rollout), tmp_path, Console(quiet=True), rules, timeout_s=60.0)


def tasks_for(step, attempt):
    return [VideoTask(name, f"{name}.mp4", "?", "A", AnswerKind.LETTER) for name in ("a", "b")]


@pytest.mark.cli
def test_faults_are_injected_the_run_is_launched_again_stopped_and_finished_and_all_is_recorded(
    run_under_test, tmp_path
):
    names = ("reward_killed", "run_killed", "run_killed_checkpoint_damaged", "run_terminated")
    plan = [PlannedFault(0.3 * place, name, 0.5) for place, name in enumerate((*names, "reward_killed"), start=1)]
    run_under_test.inject_for(8.0, chain(plan, schedule(0, 600.0)))
    reached = run_under_test.steps_done
    run_under_test.finish(reached + 2)

    artifacts = read_artifacts(tmp_path, tmp_path / CONFIG.name)
    rules = run_under_test._rules
    assert {name: found for name, found in check_invariants(artifacts, rules, reached + 2).items() if found} == {}
    assert sorted(injection.fault_type for injection in artifacts.injections) == sorted(due.fault_type for due in plan)
    assert [one.ended for one in artifacts.launches[-2:]] == [STOPPED, BY_ITSELF] and len(artifacts.launches) == 5
    assert all(one.started_s < one.ended_s for one in artifacts.launches)
    assert (
        recoveries(artifacts, rules)[-1].outcome == RECOVERED
    )  # the first may have been overtaken by the end of its launch
    assert matches_reference(artifacts, run_under_test.reference(reached), reached) == []


@pytest.mark.cli
def test_a_run_that_fails_by_itself_is_not_launched_again(run_under_test, tmp_path, monkeypatch):
    failing = RUN.replace("    if stopping:\n        break\n", "    if step == 3:\n        break\n")
    failing = failing.replace("sys.exit(143 if stopping else 0)", "sys.exit(1)")
    monkeypatch.setattr(sys.modules[__name__], "RUN", failing)
    run_under_test.inject_for(60.0, schedule(0, 600.0))
    assert not run_under_test.is_alive and run_under_test.steps_done == 3
    artifacts = read_artifacts(tmp_path, tmp_path / CONFIG.name)
    assert check_invariants(artifacts, run_under_test._rules, 3)["endings"] == [
        "launch 1 ended by itself with exit code 1"
    ]


@pytest.mark.cli
def test_a_run_that_hangs_is_killed_and_recorded(run_under_test, tmp_path, monkeypatch):
    hanging = RUN.replace("    if stopping:\n        break\n", "    if step == 2:\n        time.sleep(600)\n")
    monkeypatch.setattr(sys.modules[__name__], "RUN", hanging)
    run_under_test._timeout_s = 1.5
    run_under_test.inject_for(60.0, schedule(0, 600.0))
    assert not run_under_test.is_alive
    (launch,) = read_artifacts(tmp_path, tmp_path / CONFIG.name).launches
    assert (launch.ended, launch.exit_code, launch.reported, launch.left) == (HUNG, -9, 2, [])


@pytest.mark.cli
@pytest.mark.parametrize("code", [0, 3])
def test_the_command_exits_with_the_result_and_prints_it_as_json(monkeypatch, result, code):
    asked = []

    def fake_chaos(config, experiment, console):
        asked.append(experiment)
        return result if code else replace(result, violations={"steps": []})

    monkeypatch.setattr("rl.fault_injection.chaos.run_chaos", fake_chaos)
    arguments = [
        "chaos",
        str(QUICKSTART),
        "--minutes",
        "2",
        "--seed",
        "7",
        "--only",
        "reward_killed, run_killed",
        "--json",
    ]
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == code
    printed = json.loads(answer.stdout.splitlines()[-1])
    assert printed["passed"] == (code == 0) and printed["fault_types"]["run_killed"]["recovery_max_s"] == 30.0
    assert asked == [Experiment(2.0, 7, 20.0, ("reward_killed", "run_killed"), False, 1800.0)]


@pytest.mark.cli
def test_a_deterministic_run_is_compared_with_one_without_faults(monkeypatch, result):
    asked = []
    monkeypatch.setattr(
        "rl.fault_injection.chaos.run_chaos", lambda config, experiment, console: asked.append(experiment) or result
    )
    for more in ([], ["--no-reference"]):
        CliRunner().invoke(app, ["chaos", str(QUICKSTART), "rollout.deterministic=true", *more])
    assert [(experiment.reference, experiment.fault_types) for experiment in asked] == [
        (True, WITHOUT_NODES),
        (False, WITHOUT_NODES),
    ]
