"""n + k steps straight are n steps, SIGKILL of everything, and k more, bit for bit, on real clips and real workers."""

import pytest
from rich.console import Console

from rl.checkpoint.checkpoint import read_kernels
from rl.fault_injection.compared_runs import Kill
from rl.fault_injection.verify_resume import Proof, compare, print_proof
from rl.policy.batch_invariant import PADDINGS
from rl.policy.kernels import processor
from rl.tracking.fingerprint import STAGES
from tests.proof_run import STEPS, runs_in, violations

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
    """(n, k) = (1, 4) at the boundary; then (2, 3) while the fourth step is under way, the third done and lost."""
    return proof_runs.interrupted([Kill(1), Kill(2, "mid-step")])


def test_a_run_killed_at_a_checkpoint_and_in_mid_step_loses_and_repeats_nothing(proof_home, interrupted):
    at_boundary, mid_step = interrupted[1]
    assert 1 <= at_boundary.resumes_at <= at_boundary.steps_done < STEPS
    assert 2 <= mid_step.resumes_at < mid_step.steps_done  # something was lost
    assert all(one.processes >= 5 for one in (at_boundary, mid_step))  # driver, Ray, engine, reward worker, two ranks
    assert violations(proof_home / "interrupted") == []


def test_a_run_killed_at_a_checkpoint_and_in_mid_step_equals_the_uninterrupted_run(exact, interrupted, uninterrupted):
    resumed, killed = interrupted
    proof = Proof(killed, compare(uninterrupted, resumed, STEPS))
    print_proof(proof, Console())  # shown if it fails
    assert proof.passed


@pytest.mark.soak  # five launches of its own
def test_where_rollouts_run_a_step_ahead_a_run_is_repeated_and_resumed_bit_for_bit(exact, tmp_path):
    """At each checkpoint the next step has been sampled already, with the weights before it."""
    for name in ("runs", "again"):
        (tmp_path / name).mkdir()
    runs, again = (
        runs_in(tmp_path / name, "trainer.max_policy_lag=1", f"cache_dir={tmp_path}/cache", deterministic=True)
        for name in ("runs", "again")
    )
    straight = runs.straight()
    assert [line["policy/staleness_max"] for line in straight.values()] == [0.0] + [1.0] * (STEPS - 1)
    resumed, killed = runs.interrupted([Kill(1), Kill(2, "mid-step")])
    for proof in (
        Proof(killed, compare(straight, resumed, STEPS)),
        Proof((), compare(straight, again.straight(), STEPS)),
    ):
        print_proof(proof, Console())  # shown if it fails
        assert proof.passed


def test_a_checkpoint_of_a_deterministic_run_holds_what_its_bits_depend_on(exact, proof_home, interrupted):
    kernels = read_kernels(proof_home / "interrupted" / "checkpoints" / f"step_{STEPS:08d}")
    assert kernels["products"] in {str(padding) for padding in PADDINGS}
    assert kernels["processor"] == processor()
