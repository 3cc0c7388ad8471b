"""n + k steps straight are n steps, SIGKILL of everything, and k more, bit for bit, on real clips and real workers."""

from pathlib import Path

import pytest
from rich.console import Console

from rl.config_file import load_config
from rl.fingerprint import STATIONS
from rl.verify_resume import Kill, Proof, Runs, compare, print_proof

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.deepspeed]

STEPS = 5
SMALL = (  # five clips, four a step: an epoch ends inside every step but the first; of two siblings, many are equal
    "data.quickstart.train_clips=5",
    "data.quickstart.held_out_clips=4",
    "cold_start.steps=60",
    "rollout.num_workers=1",
    "rollout.tasks_per_step=4",
    "rollout.group_size=2",
    "algorithm.dynamic_sampling=1",
    "trainer.eval_tasks=0",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    home = tmp_path_factory.mktemp("exact")
    quickstart = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
    config = load_config([quickstart], [*SMALL, f"cache_dir={home}/cache"])
    return Runs(config, home, total_steps=STEPS, console=Console(quiet=True), timeout_s=1800)


@pytest.fixture(scope="module")
def straight(runs):
    """The run that never stopped; it also makes clips, policy and cold start, which the other finds cached."""
    return runs.straight()


def test_every_step_has_a_fingerprint_of_every_station(straight):
    assert list(straight) == list(range(1, STEPS + 1))
    for line in straight.values():
        assert {f"state/{station}" for station in (*STATIONS, "hash")} <= line.keys()
    for station in ("prompts", "tokens", "logprobs", "optimizer", "weights", "hash"):  # nothing stands still
        assert len({line[f"state/{station}"] for line in straight.values()}) == STEPS
    assert sum(line["rollout/resampled_groups"] for line in straight.values()) > 0  # dynamic sampling was at work


def test_a_run_killed_at_a_checkpoint_and_again_in_mid_step_is_the_run_that_never_stopped(runs, straight):
    """(n, k) = (1, 4) at the boundary; then (2, 3) while the fourth step is under way, the third done and lost."""
    resumed, killed = runs.interrupted([Kill(1), Kill(2, "mid-step")])

    proof = Proof(killed, compare(straight, resumed, STEPS))
    print_proof(proof, Console())  # shown if it fails
    assert proof.passed
    at_boundary, mid_step = killed
    assert 1 <= at_boundary.resumes_at <= at_boundary.steps_done < STEPS
    assert 2 <= mid_step.resumes_at < mid_step.steps_done  # something was lost
    assert all(one.processes >= 5 for one in killed)  # driver, Ray, an engine, a reward worker, two learner ranks
