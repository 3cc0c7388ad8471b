"""verify-resume: what it compares, what it prints, and that it kills all of a run and nothing else."""

import io
import json
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from rl.checkpoint.store import CheckpointStore
from rl.cli.main import app
from rl.config.errors import ConfigError
from rl.config.file import load_config
from rl.fault_injection.compared_runs import Kill, Killed, RunProcess, Runs, VerificationError, proof_config
from rl.fault_injection.verify_resume import ComparedStep, Proof, compare, print_proof, verify_resume
from rl.run.console.stages import counted_stage
from rl.tracking.fingerprint import STAGES
from rl.trajectory import RunState

CONFIG = load_config([Path(__file__).parents[3] / "configs" / "quickstart.yaml"])
EQUAL = Proof((Killed(9, 2, 1),), (ComparedStep(1, "sha256:aa", "sha256:aa", None),))


def line(step, **changed):
    prints = {f"state/{stage}": f"sha256:{stage}{step}" for stage in STAGES}
    return {"step": step, "state/hash": f"sha256:{step}{''.join(changed)}", **prints, **changed}


def lines(*of):
    return {one["step"]: one for one in of}


def test_equal_runs_are_equal_at_every_step():
    straight = lines(line(1), line(2))
    assert [step.differs_at for step in compare(straight, dict(straight), 2)] == [None, None]


def test_runs_differ_from_the_first_stage_of_a_step_whose_fingerprints_differ():
    resumed = lines(line(1), line(2, **{"state/weights": "x", "state/rewards": "x"}), line(3, **{"state/prompts": "x"}))
    proof = Proof((), compare(lines(line(1), line(2), line(3)), resumed, 3))
    assert [step.differs_at for step in proof.steps] == [None, "rewards", "prompts"]
    assert not proof.passed
    assert proof.as_dict()["first_difference"] == {"step": 2, "stage": "rewards"}


def test_a_step_that_is_missing_or_has_no_fingerprints_is_not_equal():
    assert [s.differs_at for s in compare(lines(line(1)), lines(line(1)), 2)] == [None, "prompts"]
    assert [s.differs_at for s in compare({1: {"step": 1}}, {1: {"step": 1}}, 1)] == ["prompts"]


@pytest.mark.parametrize(
    ("proof", "words"),
    [
        (EQUAL, ["equal", "9 processes killed after 2 steps, resumed at step 1", "bit for bit"]),
        (
            replace(EQUAL, steps=(ComparedStep(1, "sha256:aa", "sha256:bb", "rewards"),)),
            [
                "sha256:aa",
                "sha256:bb",
                "state/rewards differs",
                "the runs differ from step 1 on, first in state/rewards",
            ],
        ),
    ],
)
def test_the_result_is_a_table_and_a_sentence(proof, words):
    console = Console(file=io.StringIO(), width=120)
    print_proof(proof, console)
    assert all(word in console.file.getvalue() for word in words)


def test_the_runs_of_a_proof_are_the_configured_one_made_deterministic(tmp_path):
    mirrored = replace(
        CONFIG,
        trainer=replace(CONFIG.trainer, remote="memory://runs"),
        learner=replace(CONFIG.learner, digest_every=50),  # every step of a proof has its digest
    )
    declared = proof_config(mirrored, name="straight", output_dir=tmp_path, steps=4, save_every=2)
    assert declared.trainer.remote == ""  # nothing there to go on from, now or the next time
    assert declared.rollout == replace(CONFIG.rollout, deterministic=True)
    assert (declared.trainer.steps, declared.trainer.save_every, declared.resume) == (4, 2, "auto")
    for kept in ("seed", "policy", "data", "algorithm", "learner", "rewards", "cache_dir"):
        assert getattr(declared, kept) == getattr(CONFIG, kept)


@pytest.mark.parametrize(
    ("overrides", "command"),
    [([], "finetune"), (["rewards.answer.fn=answer"], "train")],
)
def test_a_configuration_without_rewards_is_fine_tuned(monkeypatch, tmp_path, overrides, command):
    launched = []

    def launch(settings, output, asked):
        launched.append((asked, load_config([settings]).finetune.sources["clips"].path))
        raise FileNotFoundError

    monkeypatch.setattr("rl.fault_injection.compared_runs.launched", launch)
    config = load_config([], ["finetune.sources.clips.path=/rows.json", *overrides])
    with pytest.raises(FileNotFoundError):
        Runs(config, tmp_path, total_steps=2, console=Console(quiet=True)).straight()
    assert launched == [(command, "/rows.json")]


STEPS = """
import json, sys, time
folder, steps = sys.argv[1], int(sys.argv[2])
with open(f"{folder}/metrics.jsonl", "a") as file:
    for step in range(1, steps + 1):
        line = {"step": step, "time_s": time.time(), "state/hash": "sha256:00", "seconds/step": 0.01}
        file.write(json.dumps(line) + "\\n")
        file.flush()
sys.stderr.write("error: no more\\n")
sys.stderr.flush()
if sys.argv[3] == "stay":
    time.sleep(600)
sys.exit(1)
"""


@pytest.fixture
def run_of(tmp_path):
    """`run_of(steps=3, then="stay")`: a process that reports steps like a run, seen as one."""
    log = tmp_path / "run.log"
    started = []

    def start(*, steps, then, total=4, timeout_s=60.0):
        command = [sys.executable, "-c", STEPS, str(tmp_path), str(steps), then]
        with log.open("wb") as output:
            started.append(subprocess.Popen(command, stdout=output, stderr=output))
        reported = stack.enter_context(counted_stage(Console(quiet=True), "a run", total))
        return RunProcess(started[-1], "a run", tmp_path, log, total, reported, timeout_s)

    with ExitStack() as stack:
        yield start
    for process in started:
        process.kill()
        process.wait()


def saved(tmp_path, step):
    store = CheckpointStore(tmp_path)
    store.commit(store.begin(step), RunState(step, step, 0), "seed: 0")


@pytest.mark.parametrize(("moment", "done"), [("boundary", 2), ("mid-step", 3)])
def test_a_run_is_killed_once_its_checkpoint_is_out_and_mid_step_once_something_can_be_lost(
    run_of, tmp_path, moment, done
):
    saved(tmp_path, 2)
    run = run_of(steps=done, then="stay")
    assert run.kill(Kill(2, moment)) == Killed(processes=1, steps_done=done, resumes_at=2)


def test_a_run_that_ends_before_it_is_killed_is_reported_with_its_last_line(run_of, tmp_path):
    with pytest.raises(VerificationError, match=r"'a run' ended \(exit code 1\) before .*run\.log.*error: no more"):
        run_of(steps=1, then="go").kill(Kill(2))
    with pytest.raises(VerificationError, match=r"'a run' failed \(exit code 1\); its output: .*run\.log"):
        run_of(steps=1, then="go").finish()


def test_a_run_that_does_not_end_is_given_up_after_the_timeout(run_of):
    with pytest.raises(VerificationError, match="took too long"):
        run_of(steps=1, then="stay", timeout_s=0.2).finish()


def test_moments_that_do_not_exist_are_refused():
    with pytest.raises(ConfigError, match="--moment must be one of boundary, mid-step, got 'noon'"):
        verify_resume(CONFIG, Console(quiet=True), at=1, steps=1, moment="noon")


@pytest.mark.cli
@pytest.mark.parametrize(("proof", "code"), [(EQUAL, 0), (replace(EQUAL, steps=compare({}, {}, 1)), 3)])
def test_the_command_exits_with_the_result_and_prints_it_as_json(monkeypatch, proof, code):
    asked = {}

    def prove(config, console, **options):
        asked.update(options)
        return proof

    monkeypatch.setattr("rl.fault_injection.verify_resume.verify_resume", prove)
    arguments = ["verify-resume", "configs/quickstart.yaml", "--at", "3", "--steps", "2", "--json"]
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == code
    assert json.loads(answer.stdout.splitlines()[-1])["passed"] == proof.passed
    assert asked == {"at": 3, "steps": 2, "moment": "boundary", "run_timeout_s": 3600.0}
