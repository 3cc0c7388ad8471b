"""n + k steps straight are n steps, SIGKILL of everything, and k more, bit for bit, on real clips and real workers."""

import json

import pytest
from rich.console import Console

from rl.checkpoint.checkpoint import read_kernels
from rl.fault_injection.compared_runs import Kill
from rl.fault_injection.verify_resume import Proof, compare, print_proof
from rl.policy.batch_invariant import PADDINGS
from rl.policy.kernels import processor
from rl.tracking.fingerprint import STAGES
from tests.proof_run import STEPS, TURN, numbers, order_of_turns, records, runs_in, violations

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.deepspeed]


def test_every_step_has_a_fingerprint_of_every_stage(uninterrupted):
    assert list(uninterrupted) == list(range(1, STEPS + 1))
    for line in uninterrupted.values():
        assert {f"state/{stage}" for stage in (*STAGES, "hash")} <= line.keys()
    for stage in ("prompts", "tokens", "logprobs", "optimizer", "weights", "hash"):  # every step changes them
        assert len({line[f"state/{stage}"] for line in uninterrupted.values()}) == STEPS
    assert sum(line["rollout/resampled_groups"] for line in uninterrupted.values()) > 0  # dynamic sampling was at work


@pytest.fixture(scope="module")
def interrupted(proof_runs, uninterrupted):
    """(n, k) = (2, 3) while the fourth step is under way, the third done and lost."""
    return proof_runs.interrupted([Kill(2, "mid-step")])


def test_a_run_killed_in_mid_step_loses_and_repeats_nothing(lag, proof_home, interrupted):
    (killed,) = interrupted[1]
    assert 2 <= killed.resumes_at < killed.steps_done  # something was lost
    assert killed.processes >= 5  # driver, Ray, engine, reward worker, two ranks
    assert violations(proof_home / "interrupted", lag) == []


def test_a_run_killed_in_mid_step_equals_the_uninterrupted_run(exact, interrupted, uninterrupted):
    resumed, killed = interrupted
    proof = Proof(killed, compare(uninterrupted, resumed, STEPS))
    print_proof(proof, Console())  # shown if it fails
    assert proof.passed


def test_numbers_and_records_of_a_killed_run_are_those_of_the_uninterrupted_run(
    exact, proof_home, interrupted, uninterrupted
):
    assert numbers(interrupted[0]) == numbers(uninterrupted)
    assert records(proof_home / "interrupted") == records(proof_home / "straight")


@pytest.mark.soak  # a run of its own
def test_a_run_killed_twice_at_a_checkpoint_first_equals_the_uninterrupted_run(
    lag, exact, proof_overrides, uninterrupted, tmp_path
):
    """(n, k) = (1, 4) at the boundary, then (2, 3) in mid-step."""
    again, killed = runs_in(tmp_path, *proof_overrides, deterministic=True).interrupted([Kill(1), Kill(2, "mid-step")])
    assert 1 <= killed[0].resumes_at <= killed[0].steps_done < STEPS
    assert violations(tmp_path / "interrupted", lag) == []
    assert Proof(killed, compare(uninterrupted, again, STEPS)).passed


@pytest.mark.soak  # a run of its own
def test_the_same_run_once_more_is_the_same(exact, proof_home, proof_overrides, uninterrupted, tmp_path):
    again = runs_in(tmp_path, *proof_overrides, deterministic=True).straight()
    assert compare(uninterrupted, again, STEPS) == compare(uninterrupted, uninterrupted, STEPS)
    assert numbers(again) == numbers(uninterrupted)
    assert records(tmp_path / "straight") == records(proof_home / "straight")


def test_a_step_is_sampled_with_weights_as_old_as_the_lag_says(lag, exact, uninterrupted):
    stalest = [line["policy/staleness_max"] for line in uninterrupted.values()]
    assert stalest == [float(min(step, lag)) for step in range(STEPS)]


def test_a_checkpoint_of_a_deterministic_run_holds_what_its_bits_depend_on(exact, proof_home, interrupted):
    kernels = read_kernels(proof_home / "interrupted" / "checkpoints" / f"step_{STEPS:08d}")
    assert kernels["products"] in {str(padding) for padding in PADDINGS}
    assert kernels["processor"] == processor()


@pytest.mark.soak  # a run of its own; one step with turns: tests/test_run.py
@pytest.mark.parametrize("lag", [0], indirect=True)
def test_engines_and_learners_that_take_turns_make_the_same_run(exact, proof_overrides, uninterrupted, tmp_path):
    turns = runs_in(tmp_path, *proof_overrides, "placement.share_gpus=turns", deterministic=True).straight()
    assert compare(uninterrupted, turns, STEPS) == compare(uninterrupted, uninterrupted, STEPS)
    assert numbers(turns) == numbers(uninterrupted)
    lines = [json.loads(line) for line in (tmp_path / "straight" / "lanes.jsonl").read_text().splitlines()]
    for line in lines[1:]:
        assert order_of_turns(line) == ["< learner without masters, moments and gradients", "< rollout", *TURN]
