"""The command that strikes runs: what it changes of a configuration, what it sees, and what it says in the end."""

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
from rl.fault_injection.chaos import Ordeal, Verdict, chaos_config, print_verdict, rows, rules_of
from rl.fault_injection.experiment import Trial, last_step
from rl.fault_injection.invariants import (
    BY_ITSELF,
    HUNG,
    MENDED,
    STOPPED,
    STRUCK,
    UNNOTICED,
    Evidence,
    Launch,
    Mend,
    judge,
    mends,
    read_evidence,
    same_as,
)
from rl.fault_injection.schedule import KINDS, Due, schedule
from rl.fault_injection.targets import Strike
from rl.run.resume import changed_meaning
from rl.trajectory import AnswerKind, VideoTask

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
CONFIG = load_config([QUICKSTART])


def strike(kind, time_s):
    return Strike(time_s, kind, 42, "ray::RolloutWorker", "rollout/0")


def launch(started_s, first_step_s):
    return Launch(started_s, first_step_s, started_s + 50.0, STRUCK, -9, 0.0, 3, 3, [])


@pytest.fixture
def verdict(tmp_path):
    """Two workers killed, one of them mended; a run killed at 130 and back with its first step at 160."""
    killed = (strike("rollout_killed", 100.0), strike("rollout_killed", 110.0))
    strikes = (*killed, strike("run_killed", 130.0))
    launches = (launch(80.0, 90.0), launch(131.0, 160.0))
    evidence = Evidence(({"step": 1, "policy/version": 1.0},), {}, (), strikes, launches)
    mended = (Mend(killed[0], MENDED, 2.0, 20.0), Mend(killed[1], UNNOTICED))
    return Verdict(tmp_path, 70.0, 3, evidence, mended, {"steps": [], "faults": ["rollout_killed: not noticed"]})


def test_a_run_that_is_to_be_struck_is_the_configured_one_but_endless_saved_and_all_on_record(tmp_path):
    declared = chaos_config(CONFIG, output_dir=tmp_path)
    assert declared.trainer.steps >= 100_000 and declared.trainer.save_every == 1
    assert declared.logging.trajectories_per_step == CONFIG.rollout.group_size * CONFIG.rollout.tasks_per_step
    assert declared.video.decode_workers == 1 and declared.placement.dashboard is False
    changed = changed_meaning(to_dict(CONFIG), to_dict(declared))
    assert changed == ["learner.optimizer.warmup_fraction: 0.05 -> 0.0"]


def test_deadlines_are_shortened_unless_the_user_has_set_them(tmp_path):
    short = chaos_config(CONFIG, output_dir=tmp_path)
    assert (short.video.decode_timeout_s, short.rollout.stall_timeout_s, short.learner.timeout_s) == (10.0, 30.0, 60.0)
    patient = load_config(
        [QUICKSTART], ["video.decode_timeout_s=45", "learner.timeout_s=900", "rewards.answer.weight=1"]
    )
    kept = chaos_config(patient, output_dir=tmp_path)
    assert (kept.video.decode_timeout_s, kept.rollout.stall_timeout_s, kept.learner.timeout_s) == (45.0, 55.0, 900.0)


def test_a_hang_may_go_unnoticed_for_as_long_as_its_deadline(tmp_path):
    """Rollout: 30 s without progress, or 60 s for its counters if it rests; rewards: 8 siblings of 5 s, and 5 s."""
    rules = rules_of(chaos_config(CONFIG, output_dir=tmp_path), lambda step, attempt: ())
    assert rules.hung_s == {"rollout": 90.0, "reward": 45.0, "learner": 60.0}


def test_the_last_step_is_read_off_the_end_of_the_log_and_a_torn_line_is_not_it(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    assert last_step(metrics) == (0, 0.0)
    metrics.write_text(
        "".join(json.dumps({"step": i, "time_s": 10.0 * i, "x": "y" * 9000}) + "\n" for i in range(1, 40))
    )
    assert last_step(metrics) == (39, 390.0)
    with metrics.open("a") as file:
        file.write('{"step": 40, "time')
    assert last_step(metrics) == (39, 390.0)


def test_seconds_are_told_by_kind_and_those_of_a_run_from_outside(verdict):
    worker, run = rows(verdict.evidence, verdict.mends)
    assert (worker.kind, worker.struck, worker.mended) == ("rollout_killed", 2, 1)
    assert (worker.detection_max_s, worker.recovery_median_s) == (2.0, 20.0)
    assert (run.kind, run.struck, run.mended, run.recovery_max_s) == ("run_killed", 1, 1, 30.0)


def test_the_verdict_is_a_table_and_a_sentence(verdict):
    console = Console(file=io.StringIO(), width=120)
    print_verdict(verdict, console)
    said = console.file.getvalue()
    assert "rollout_killed" in said and "faults: violated 1 times" in said and "steps: held" in said
    assert "3 steps in 70 s, 3 faults: NOT all invariants held" in said


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

asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
def hire():
    return subprocess.Popen(["ray::reward/0:RewardWorker", "600"], executable="/bin/sleep")

def play(step):
    for group, task in enumerate(["a", "b"]):
        for sibling in range(2):
            turns = [{"policy_version": step - 1}]
            record = {"group": group, "sibling": sibling, "task": {"id": task}, "turns": turns, "rewards": {}}
            yield json.dumps(record) + "\\n"

worker = hire()
for step in range(first + 1, settings["trainer"]["steps"] + 1):
    time.sleep(0.05)  # the work of a step
    if worker.poll() is not None:
        fault = {"step": step, "kind": "worker_died", "worker": "reward/0", "cause": "SIGKILL", "action": "replaced"}
        fault |= {"detected_s": time.time(), "recovery_s": 0.0}
        worker = hire()
        with (home / "faults.jsonl").open("a") as file:
            file.write(json.dumps(fault) + "\\n")
    (home / "trajectories" / f"step_{step:06d}.jsonl").write_text("".join(play(step)))
    with metrics.open("a") as file:
        line = {"step": step, "time_s": time.time(), "policy/version": step, "seconds/step": 0.05}
        file.write(json.dumps(line | {"state/hash": str(step)}) + "\\n")
    store.commit(store.begin(step), RunState(step, step, 0), "seed: 0")
    if asked:
        break
worker.kill()
worker.wait()
sys.exit(143 if asked else 0)
'''


@pytest.fixture
def trial(tmp_path, monkeypatch):
    """Trials of a run in small, in place of `dynframe train`."""

    @contextmanager
    def launched_in_small(settings, output):
        with output.open("ab") as said:
            command = [sys.executable, "-c", RUN, str(settings)]
            yield subprocess.Popen(command, cwd=QUICKSTART.parents[1], stdout=said, stderr=said)

    monkeypatch.setattr("rl.fault_injection.experiment.launched", launched_in_small)
    declared = chaos_config(CONFIG, output_dir=tmp_path)
    rollout = replace(declared.rollout, tasks_per_step=2, group_size=2)
    rules = replace(rules_of(declared, tasks_for), group_size=2)
    return Trial(replace(declared, rollout=rollout), tmp_path, Console(quiet=True), rules, patience_s=60.0)


def tasks_for(step, attempt):
    return [VideoTask(name, f"{name}.mp4", "?", "A", AnswerKind.LETTER) for name in ("a", "b")]


@pytest.mark.cli
def test_a_run_is_struck_started_again_stopped_and_finished_and_all_of_it_is_on_record(trial, tmp_path):
    kinds = ("reward_killed", "run_killed", "run_killed_checkpoint_damaged", "run_terminated")
    plan = [Due(0.3 * place, kind, 0.5) for place, kind in enumerate((*kinds, "reward_killed"), start=1)]
    trial.endure(chain(plan, schedule(0, 600.0)), seconds=8.0)
    reached = trial.steps_done
    trial.finish(reached + 2)

    evidence = read_evidence(tmp_path, tmp_path / CONFIG.name)
    rules = trial._rules
    assert {name: found for name, found in judge(evidence, rules, reached + 2).items() if found} == {}
    assert sorted(strike.kind for strike in evidence.strikes) == sorted(due.kind for due in plan)
    assert [one.ended for one in evidence.launches[-2:]] == [STOPPED, BY_ITSELF] and len(evidence.launches) == 5
    assert mends(evidence, rules)[-1].outcome == MENDED  # the first one may have been overtaken by the end of its run
    assert same_as(evidence, trial.reference(reached), reached) == []


@pytest.mark.cli
def test_a_run_that_fails_by_itself_is_not_started_again(trial, tmp_path, monkeypatch):
    failing = RUN.replace("    if asked:\n        break\n", "    if step == 3:\n        break\n")
    failing = failing.replace("sys.exit(143 if asked else 0)", "sys.exit(1)")
    monkeypatch.setattr(sys.modules[__name__], "RUN", failing)
    trial.endure(schedule(0, 600.0), seconds=60.0)
    assert not trial.is_alive and trial.steps_done == 3
    evidence = read_evidence(tmp_path, tmp_path / CONFIG.name)
    assert judge(evidence, trial._rules, 3)["endings"] == ["launch 1 ended by itself with exit code 1"]


@pytest.mark.cli
def test_a_run_that_hangs_is_killed_and_told(trial, tmp_path, monkeypatch):
    hanging = RUN.replace("    if asked:\n        break\n", "    if step == 2:\n        time.sleep(600)\n")
    monkeypatch.setattr(sys.modules[__name__], "RUN", hanging)
    trial._patience_s = 1.5
    trial.endure(schedule(0, 600.0), seconds=60.0)
    assert not trial.is_alive
    (launch,) = read_evidence(tmp_path, tmp_path / CONFIG.name).launches
    assert (launch.ended, launch.exit_code, launch.reported, launch.left) == (HUNG, -9, 2, [])


@pytest.mark.cli
@pytest.mark.parametrize("code", [0, 3])
def test_the_command_exits_with_the_verdict_and_prints_it_as_json(monkeypatch, verdict, code):
    asked = []

    def strike_it(config, ordeal, console):
        asked.append(ordeal)
        return verdict if code else replace(verdict, violations={"steps": []})

    monkeypatch.setattr("rl.fault_injection.chaos.run_chaos", strike_it)
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
    told = json.loads(answer.stdout.splitlines()[-1])
    assert told["passed"] == (code == 0) and told["kinds"]["run_killed"]["recovery_max_s"] == 30.0
    assert asked == [Ordeal(2.0, 7, 20.0, ("reward_killed", "run_killed"), False, 1800.0)]


@pytest.mark.cli
def test_a_deterministic_run_is_compared_with_one_without_faults(monkeypatch, verdict):
    asked = []
    monkeypatch.setattr(
        "rl.fault_injection.chaos.run_chaos", lambda config, ordeal, console: asked.append(ordeal) or verdict
    )
    for more in ([], ["--no-reference"]):
        CliRunner().invoke(app, ["chaos", str(QUICKSTART), "rollout.deterministic=true", *more])
    assert [(ordeal.reference, ordeal.kinds) for ordeal in asked] == [(True, tuple(KINDS)), (False, tuple(KINDS))]
