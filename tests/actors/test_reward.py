"""Reward workers: scores in order; a reward that hangs, dies or fails costs its own trajectories and nothing else."""

import os
import signal
import time
from dataclasses import replace

import psutil
import pytest

from rewards.golden import golden_group
from rl.config.errors import ConfigError
from rl.config.rewards import RewardTermConfig, ScoringConfig
from rl.trajectory import RewardFailure, SegmentRewards
from tests.lost_objects import lost
from tests.remote_groups import remote

pytestmark = pytest.mark.ray

ANSWER = {"answer": RewardTermConfig(fn="answer")}
USER_REWARDS = """
import os, signal, sys, time

def hangs_on_the_second(task, trajectory):
    if "second" in trajectory.answer_text:
        while True:
            time.sleep(0.01)
    return 1.0

def gives_1(task, trajectory):
    return 1.0

def dies_on_bad_tasks(task, trajectory):
    if task.task_id == "bad":
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0

def deaf(task, trajectory):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    time.sleep(3600)

def shrugs(task, trajectory):
    return float("nan")

def interrupts_on_the_second(task, trajectory):
    if "second" in trajectory.answer_text:
        raise KeyboardInterrupt
    return 1.0

def exits_on_the_second(task, trajectory):
    if "second" in trajectory.answer_text:
        sys.exit(1)
    return 1.0

def dies_once(task, trajectory, *, mark):
    print("looking at", task.task_id)
    if not os.path.exists(mark):
        open(mark, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0

def greedy(task, trajectory):
    if "second" in trajectory.answer_text:
        bytearray(512 * 2**20)
    return 1.0

KEPT = []
def leaks(task, trajectory):
    KEPT.append(bytearray(b"x") * (40 * 2**20))
    return 1.0
"""


def options(index):
    return {"num_cpus": 0.1, "name": f"reward/{index}/{time.monotonic_ns()}"}


def pid_of(pool, ray):
    return ray.get(pool._slots[0].worker.__ray_call__.remote(lambda self: os.getpid()))


@pytest.fixture
def user_file(tmp_path):
    path = tmp_path / "user_rewards.py"
    path.write_text(USER_REWARDS)
    return path


@pytest.fixture
def pool_of(ray_cluster):
    from actors.reward import RewardPool

    return lambda terms, restore=None, **scoring: RewardPool(terms, ScoringConfig(**scoring), options, restore=restore)


def group(task_id="good", texts=("first", "second")):
    golden = golden_group()
    siblings = tuple(replace(golden.trajectories_G[0], answer_text=text) for text in texts)
    return held(replace(golden, task=replace(golden.task, task_id=task_id), trajectories_G=siblings))


def held(group):
    import ray

    return remote(group, ray.put(group))


def test_a_group_that_is_lost_with_its_node_is_rolled_out_again_and_scored(pool_of, ray_cluster):
    gone, there, again = replace(group("gone"), reference=lost(ray_cluster)), group("there"), group("again")
    asked = []
    pool = pool_of(ANSWER, restore=lambda groups: asked.extend(groups) or [again])
    scored = pool.score_all([gone, there], step=0)
    assert asked == [gone] and [one.group for one in scored] == [again, there]
    assert all(isinstance(reward, SegmentRewards) for one in scored for reward in one.rewards_G)


def test_scores_come_back_in_the_order_of_the_groups(pool_of):
    groups = [group(task_id=f"task-{i}") for i in range(5)]
    scored = pool_of(ANSWER, num_workers=2).score_all(groups, step=0)
    assert [one.group.task.task_id for one in scored] == [f"task-{i}" for i in range(5)]
    assert all(isinstance(reward, SegmentRewards) for one in scored for reward in one.rewards_G)


def test_a_reward_that_hangs_is_named_and_masks_only_its_trajectory(pool_of, user_file):
    terms = {"slow": RewardTermConfig(fn=f"{user_file}:hangs_on_the_second")}
    (scored,) = pool_of(terms, timeout_s=0.5, max_failed_share=0.5).score_all([group()], step=0)
    fine, hung = scored.rewards_G
    assert fine.reasoning == 1.0
    assert isinstance(hung, RewardFailure) and (hung.term, hung.cause) == ("slow", "timeout")


@pytest.mark.parametrize(
    ("function", "detail"),
    [("exits_on_the_second", "SystemExit: 1"), ("interrupts_on_the_second", "KeyboardInterrupt: ")],
)
def test_a_reward_that_exits_costs_its_trajectory_and_no_worker(pool_of, user_file, function, detail):
    pool = pool_of({"mine": RewardTermConfig(fn=f"{user_file}:{function}")}, max_failed_share=0.5)
    (scored,) = pool.score_all([group()], step=0)
    fine, exited = scored.rewards_G
    assert fine.reasoning == 1.0
    assert (exited.term, exited.detail) == ("mine", detail)
    assert exited.location.source in ("sys.exit(1)", "raise KeyboardInterrupt")
    assert pool.take_faults() == []


def test_a_reward_that_cannot_be_loaded_where_a_worker_runs_ends_the_run_by_name(pool_of, tmp_path):
    terms = {**ANSWER, "mine": RewardTermConfig(fn=f"{tmp_path}/not_on_this_node.py:f")}
    with pytest.raises(ConfigError, match=r"rewards\.mine: reward '.*': no file .* on node"):
        pool_of(terms).score_all([group()], step=0)


def test_a_reward_that_ends_its_worker_while_it_is_loaded_is_named(pool_of, tmp_path):
    (tmp_path / "ends.py").write_text("import os\nos._exit(0)\n")
    terms = {"steady": ANSWER["answer"], "fatal": RewardTermConfig(fn=f"{tmp_path}/ends.py:f")}
    (scored,) = pool_of(terms).score_all([group()], step=0)
    assert {(failed.term, failed.cause) for failed in scored.rewards_G} == {("fatal", "worker_died")}


def test_a_worker_that_dies_twice_over_a_group_masks_it_and_the_groups_behind_it_are_scored(pool_of, user_file):
    names = {"steady": "gives_1", "fatal": "dies_on_bad_tasks", "late": "gives_1"}
    terms = {name: RewardTermConfig(fn=f"{user_file}:{function}") for name, function in names.items()}
    groups = [group("bad"), group("good-1"), group("good-2")]
    pool = pool_of(terms, num_workers=1, max_failed_share=0.5)
    scored = pool.score_all(groups, step=0)
    assert {(one.term, one.cause, one.task_id) for one in scored[0].rewards_G} == {("fatal", "worker_died", "bad")}
    assert all(reward.reasoning == 1.0 for one in scored[1:] for reward in one.rewards_G)
    first, second = pool.take_faults()
    assert [first.kind, second.kind] == ["worker_died", "worker_died"] and "task bad" in first.cause
    assert (first.action, second.action) == ("its group is scored by another worker", "the group is masked")
    assert pool.take_faults() == []


def test_a_worker_that_dies_once_costs_no_reward(pool_of, user_file, tmp_path):
    args = {"mark": str(tmp_path / "died")}
    pool = pool_of({"frail": RewardTermConfig(fn=f"{user_file}:dies_once", args=args)})
    groups = [group(f"task-{i}") for i in range(3)]
    scored = pool.score_all(groups, step=0)
    assert [one.group.task.task_id for one in scored] == ["task-0", "task-1", "task-2"]
    assert all(reward.reasoning == 1.0 for one in scored for reward in one.rewards_G)
    (fault,) = pool.take_faults()
    assert (fault.kind, fault.worker) == ("worker_died", "reward/0") and fault.recovery_s > 0
    assert fault.failure.worker.startswith("reward/0") and fault.failure.node
    assert fault.failure.last_lines[-1] == "looking at task-0"  # what a user's reward prints is found


def test_a_call_that_takes_too_much_memory_fails_by_name_and_harms_no_other(pool_of, user_file):
    terms = {"greedy": RewardTermConfig(fn=f"{user_file}:greedy")}
    pool = pool_of(terms, memory_mib=256, max_failed_share=0.5)
    for scored in pool.score_all([group("first-task"), group("second-task")], step=0):
        fine, failed = scored.rewards_G
        assert fine.reasoning == 1.0
        assert (failed.term, failed.cause, failed.detail) == ("greedy", "memory", "MemoryError: ")
    assert {fault.kind for fault in pool.take_faults()} == {"recycled"}


def test_a_worker_that_leaks_is_replaced_before_it_fails(pool_of, user_file, ray_cluster):
    pool = pool_of({"leaky": RewardTermConfig(fn=f"{user_file}:leaks")}, memory_mib=256)
    scored = pool.score_all([group(f"task-{i}") for i in range(4)], step=0)  # 80 MiB each: beyond 128 after two
    assert all(reward.reasoning == 1.0 for one in scored for reward in one.rewards_G)
    faults = pool.take_faults()
    assert [fault.kind for fault in faults] == ["recycled", "recycled"]
    assert "scoring.memory_mib" in faults[0].cause


def test_a_worker_that_is_stopped_is_killed_and_replaced(pool_of, user_file, ray_cluster, monkeypatch):
    monkeypatch.setattr("actors.reward.GRACE_S", 0.5)
    pool = pool_of(ANSWER, timeout_s=0.5, max_failed_share=1.0)
    pool.score_all([group()], step=0)
    pid = pid_of(pool, ray_cluster)
    os.kill(pid, signal.SIGSTOP)
    hung, fine = pool.score_all([group("first"), group("second")], step=0)
    assert {reward.cause for reward in hung.rewards_G} == {"timeout"}
    assert all(isinstance(reward, SegmentRewards) for reward in fine.rewards_G)
    (fault,) = pool.take_faults()
    assert fault.kind == "worker_hung" and fault.recovery_s > 0
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=30)
    assert not psutil.pid_exists(pid)


def test_a_worker_that_ignores_sigalrm_is_killed_at_the_pools_deadline(pool_of, user_file, monkeypatch):
    monkeypatch.setattr("actors.reward.GRACE_S", 0.5)
    terms = {"deaf": RewardTermConfig(fn=f"{user_file}:deaf")}
    (scored,) = pool_of(terms, timeout_s=0.5, max_failed_share=1.0).score_all([group()], step=0)
    assert {(reward.term, reward.cause) for reward in scored.rewards_G} == {("deaf", "timeout")}


def test_too_many_failures_stop_the_run_with_the_cause(pool_of, user_file):
    from actors.reward import RewardError

    pool = pool_of({"broken": RewardTermConfig(fn=f"{user_file}:shrugs")})
    scored = pool.score_all([group()], step=0)
    with pytest.raises(
        RewardError,
        match=r"2 of 2 .*'broken' gave no finite number: returned nan on task good at .*user_rewards\.py:\d+ in shrugs",
    ):
        pool.refuse_too_many_failures(scored)


def test_a_worker_killed_between_two_steps_is_replaced_and_no_reward_is_lost(pool_of, ray_cluster):
    pool = pool_of(ANSWER)
    before = pool.score_all([group("first"), group("second")], step=0)
    os.kill(pid_of(pool, ray_cluster), signal.SIGKILL)
    after = pool.score_all([group("first"), group("second")], step=0)
    assert [one.rewards_G for one in after] == [one.rewards_G for one in before]
    assert [fault.kind for fault in pool.take_faults()] == ["worker_died"]
