"""n + k steps straight are n steps, SIGKILL of everything, and k more, bit for bit, on real clips and real workers."""

import pytest
from rich.console import Console

from rl.fault_injection.compared_runs import Kill
from rl.fault_injection.verify_resume import Proof, compare, print_proof
from rl.tracking.fingerprint import STAGES
from tests.proof_run import STEPS

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.deepspeed]


def test_every_step_has_a_fingerprint_of_every_stage(uninterrupted):
    assert list(uninterrupted) == list(range(1, STEPS + 1))
    for line in uninterrupted.values():
        assert {f"state/{stage}" for stage in (*STAGES, "hash")} <= line.keys()
    for stage in ("prompts", "tokens", "logprobs", "optimizer", "weights", "hash"):  # every step changes them
        assert len({line[f"state/{stage}"] for line in uninterrupted.values()}) == STEPS
    assert sum(line["rollout/resampled_groups"] for line in uninterrupted.values()) > 0  # dynamic sampling was at work


def test_a_run_killed_at_a_checkpoint_and_again_in_mid_step_equals_the_uninterrupted_run(proof_runs, uninterrupted):
    """(n, k) = (1, 4) at the boundary; then (2, 3) while the fourth step is under way, the third done and lost."""
    resumed, killed = proof_runs.interrupted([Kill(1), Kill(2, "mid-step")])

    proof = Proof(killed, compare(uninterrupted, resumed, STEPS))
    print_proof(proof, Console())  # shown if it fails
    assert proof.passed
    at_boundary, mid_step = killed
    assert 1 <= at_boundary.resumes_at <= at_boundary.steps_done < STEPS
    assert 2 <= mid_step.resumes_at < mid_step.steps_done  # something was lost
    assert all(one.processes >= 5 for one in killed)  # driver, Ray, an engine, a reward worker, two learner ranks
