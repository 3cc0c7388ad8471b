"""The rollout pool: whatever is ready is handed over, workers are kept busy and no more, and those lost are replaced.

Real processes are killed and stopped here; the engine in them is scripted. With vLLM: tests/test_faults.py.
"""

import asyncio
import os
import signal
import time
from functools import partial

import pytest

from actors.worker.working_time import WorkingTime
from rl.trajectory import (
    AnswerKind,
    Completion,
    Fault,
    Segment,
    StopReason,
    Trajectory,
    TrajectoryGroup,
    Turn,
    VideoTask,
)
from tests.calibration import within
from tests.lost_objects import lost, whole

pytestmark = pytest.mark.ray

TURNS = 3  # of a task named "talks"


class ScriptedEngine:
    """Holds a version, and counts how often it was asked for a sign of life."""

    def __init__(self, folder):
        self.version, self.heartbeats, self.broken, self._folder = 0, 0, "", folder

    def progress(self):
        self.heartbeats += 1
        return 0

    def failure(self):
        return self.broken

    def load_weights(self, named, version):
        if self._is_told("refuses-weights"):
            raise ValueError("no such parameter")
        try:
            list(named)
        except Exception as error:  # as the real one does
            raise RuntimeError(f"weights {version}") from error
        self.version = version
        return {}

    def _is_told(self, what):
        """Whether a file says so; of several workers, one finds it."""
        try:
            (self._folder / what).unlink()
        except FileNotFoundError:
            return False
        return True

    def stats(self):
        grown = (self._folder / "grown").exists()
        if grown:
            self._held = b"x" * (200 * 2**20)
        return {"requests": 1.0}

    def device_memory_mib(self):
        return 4000.0 if (self._folder / "grown on the device").exists() else 3000.0


class ScriptedRunner:
    """Plays a task as its name says, and notes in the group how many it had at the time.

    What is done "once" is done by the first worker that gets the task.
    """

    def __init__(self, folder):
        self._folder, self._now, self.engine = folder, 0, ScriptedEngine(folder)
        self.working = WorkingTime()

    def progress(self):
        return self.engine.progress()

    def take_faults(self):
        broken = self._folder / "decoder broke"
        if not broken.exists():
            return []
        broken.unlink()
        return [Fault("decoder_death", "decoder", "died while it read a.mp4", "another was started", 1.0, 0.2)]

    async def roll_out(self, task, *, step, greedily, occurrence=0, history):
        self._now += 1
        most = self._now
        for name, act in (
            ("dies", lambda: os.kill(os.getpid(), signal.SIGKILL)),
            ("stops", lambda: os.kill(os.getpid(), signal.SIGSTOP)),
            ("breaks", partial(setattr, self.engine, "broken", "ConnectionError: the engine is gone")),
        ):
            if task.task_id == name or (task.task_id.startswith(f"{name} once") and self._is_first(task)):
                act()
        if task.task_id.startswith("breaks once") and self.engine.broken:
            if "silently" in task.task_id:
                await asyncio.sleep(3600)
            raise RuntimeError("engine request 0: the engine is gone")
        if task.task_id.startswith("hangs"):
            await asyncio.sleep(3600)
        if task.task_id.startswith("fails"):
            raise ValueError("the engine returned no token")
        if task.task_id.startswith("waits"):  # until the last task is done
            while not (self._folder / "last").exists():
                await asyncio.sleep(0.01)
        for _ in range(3):
            await asyncio.sleep(0)
            most = max(most, self._now)
        if task.task_id.startswith("last"):
            (self._folder / "last").touch()
        turns = await self._talk(task, history) if task.task_id in ("talks", "speaks") else ()
        self._now -= 1
        told = Trajectory(turns, StopReason.ANSWERED, f"{task.task_id} {step} {greedily}")
        return TrajectoryGroup(task, (told,), None, seconds={"most": float(most), "pid": float(os.getpid())})

    async def _talk(self, task, history):
        """One token per turn, its process id as the log-prob; if it "talks", the first worker dies at the last turn."""
        turns = []
        for turn in range(TURNS):
            if task.task_id == "talks" and turn == TURNS - 1 and self._is_first(task):
                reported = self.engine.heartbeats + 2  # one is requested when the one before has been received
                while self.engine.heartbeats < reported:
                    await asyncio.sleep(0.01)
                os.kill(os.getpid(), signal.SIGKILL)
            said = history.turn(0, turn)
            if said is None:
                said = Completion((turn,), (-float(os.getpid()),), "stop", self.engine.version)
                history.add(0, said)
            turns.append(Turn((), said, Segment.REASONING))
        return tuple(turns)

    def _is_first(self, task):
        try:
            (self._folder / f"was-{task.task_id}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


@pytest.fixture
def pool_of(ray_cluster, tmp_path):
    import ray

    from actors.rollout_group import RolloutWorkerGroup
    from actors.rollout_pool import RolloutPool
    from actors.worker.waiting import do_nothing

    opened = []

    def make(workers=2, timeout_s=60.0, check=do_nothing, **settings):
        name = time.monotonic_ns()
        workers = RolloutWorkerGroup(
            partial(ScriptedRunner, tmp_path),
            workers,
            lambda index: {"num_cpus": 0.1, "name": f"rollout/{index}/{name}"},
            **settings,
        )
        opened.append(RolloutPool(workers, timeout_s=timeout_s, check=check))
        return opened[-1]

    yield make
    for pool in opened:
        for slot in pool.workers.slots:
            ray.kill(slot.worker.actor)


def tasks(*names):
    return [VideoTask(name, "v.mp4", "?", "A", AnswerKind.LETTER) for name in names]


def play(pool, named, in_flight=2):
    for finished in pool.roll_out(tasks(*named), step=-1, greedily=True, in_flight=in_flight):
        assert finished
        for index, group in finished:
            yield index, *whole([group])


def test_every_task_is_returned_once_with_its_index(pool_of):
    names = [f"q{i}" for i in range(9)]
    played = dict(play(pool_of(), names))
    assert sorted(played) == list(range(9))
    assert all(group.trajectories_G[0].answer_text == f"q{i} -1 True" for i, group in played.items())


def test_a_slow_task_does_not_hold_up_the_others(pool_of):
    order = [slot for slot, _ in play(pool_of(), ["waits", "a", "b", "c", "d", "last"])]
    assert sorted(order) == list(range(6))
    assert order.index(0) > order.index(5)  # "waits" ends only after "last" has begun, four tasks later


def test_no_worker_has_more_groups_in_flight_than_it_may_and_none_is_idle(pool_of):
    pool = pool_of(workers=2)
    pool.workers.wait_ready(60)
    groups = [group for _, group in play(pool, [f"q{i}" for i in range(12)], in_flight=3)]
    assert max(group.seconds["most"] for group in groups) <= 3
    assert len({group.seconds["pid"] for group in groups}) == 2


def test_one_at_a_time_is_in_order(pool_of):
    assert [slot for slot, _ in play(pool_of(workers=1), list("abcd"), in_flight=1)] == [0, 1, 2, 3]


def test_without_tasks_there_is_nothing_to_wait_for(pool_of):
    assert list(play(pool_of(), [])) == []


def failing(pool, named):
    from actors.rollout_group import RolloutError

    done = []
    with pytest.raises(RolloutError) as caught:
        for slot, _ in play(pool, named, in_flight=1):
            done.append(named[slot])
    return done, str(caught.value)


def test_a_task_that_kills_every_worker_ends_the_run_after_what_had_finished_is_returned(pool_of):
    done, said = failing(pool_of(workers=1), ["a", "b", "dies", "c"])
    assert done == ["a", "b"]
    assert "workers in a row were lost" in said or "could not roll out task dies: 4 workers were lost over it" in said


def test_a_task_that_fails_is_named_with_its_cause(pool_of):
    done, said = failing(pool_of(workers=1), ["a", "fails"])
    assert done == ["a"] and said == "could not roll out task fails: ValueError: the engine returned no token"


def test_a_task_that_never_ends_meets_the_deadline(pool_of):
    pool = pool_of(workers=1, timeout_s=20.0)
    assert len(list(play(pool, ["a"]))) == 1  # it has started
    pool._timeout_s = 0.5
    done, said = failing(pool, ["hangs"])
    assert done == [] and "none of 1 tasks finished within 0.5 s" in said


def kinds(pool):
    return [fault.kind for fault in pool.workers.take_faults()]


def test_a_worker_that_dies_is_replaced_and_every_task_is_returned_once(pool_of):
    pool, names = pool_of(workers=2), ["a", "dies once", "b", "c", "d", "e"]
    pool.workers.wait_ready(60)
    started = time.monotonic()
    groups = pool.generate(tasks(*names), step=0)
    assert [group.task.task_id for group in groups] == names  # in order, none twice
    assert time.monotonic() - started < within(10)
    while not (faults := pool.workers.take_faults()):
        pool.workers.poll()  # the replacement starts beside the work
    (fault,) = faults
    assert (fault.kind, fault.worker.split("/")[1]) == ("worker_died", "1") and 0 < fault.recovery_s < 60
    assert "died" in fault.cause and fault.action.endswith("went on from their token histories")
    assert fault.failure.node and fault.failure.log.endswith((".out", ".err"))


def test_another_worker_continues_a_trajectory_from_its_token_history(pool_of):
    pool = pool_of(workers=2)
    (group,) = whole(pool.generate(tasks("talks"), step=0))
    spoke = [turn.completion.logprobs[0] for turn in group.trajectories_G[0].turns]
    assert [turn.completion.token_ids for turn in group.trajectories_G[0].turns] == [(0,), (1,), (2,)]
    assert spoke[0] == spoke[1] != spoke[2] == -group.seconds["pid"]  # two turns of the dead, the last of another


def test_turns_reported_while_another_caller_polls_are_recorded_too(pool_of, ray_cluster):
    """The driver polls from within a push to a new worker, in the middle of a step: no turn may be lost then."""
    pool = pool_of(workers=2, check=lambda: pool.workers.poll())
    (group,) = whole(pool.generate(tasks("talks"), step=0))
    spoke = [turn.completion.logprobs[0] for turn in group.trajectories_G[0].turns]
    assert spoke[0] == spoke[1] != spoke[2]


def test_turns_of_lost_calls_are_taken_in_order_and_one_without_those_before_it_is_dropped(ray_cluster):
    from actors.groups import EarlierCall, fetch_turns

    first, second, third = (Completion((token,), (0.0,), "stop", 0) for token in (1, 2, 3))
    reported = [
        {7: [(0, 1, second)], 8: [(0, 0, third)]},  # too early; of another group
        {7: [(0, 0, first), (1, 0, second)]},
        {7: [(0, 0, first), (0, 1, second)]},  # the first is known
    ]
    of_one = EarlierCall(7, tuple(map(ray_cluster.put, reported)))
    of_the_next = EarlierCall(9, (ray_cluster.put({9: [(0, 2, third)]}),))
    assert fetch_turns([of_one, of_the_next]) == {0: [first, second, third], 1: [second]}


def test_turns_on_a_node_that_is_lost_are_left_out(ray_cluster):
    from actors.groups import EarlierCall, fetch_turns

    kept = Completion((1,), (0.0,), "stop", 0)
    gone, there = lost(ray_cluster), ray_cluster.put({8: [(0, 0, kept)]})
    assert fetch_turns([EarlierCall(7, (gone,)), EarlierCall(8, (there,))]) == {0: [kept]}


def test_the_only_worker_may_die_too(pool_of):
    pool = pool_of(workers=1)
    assert len(pool.generate(tasks("a", "dies once", "b"), step=0)) == 3
    assert kinds(pool) == ["worker_died"]


def test_a_stalled_worker_is_killed_and_its_stacks_are_in_the_log(pool_of, caplog):
    pool = pool_of(workers=2, stall_timeout_s=3.0)
    assert len(pool.generate(tasks("a", "stops once", "b"), step=0)) == 3
    assert "State:\tT (stopped)" in caplog.text and "no progress for 3 s" in caplog.text
    while not (faults := pool.workers.take_faults()):
        pool.workers.poll()
    assert [fault.kind for fault in faults] == ["worker_hung"]


@pytest.mark.parametrize("task", ["breaks once", "breaks once silently"])
def test_a_worker_whose_engine_is_gone_is_replaced(pool_of, task):
    """Its groups fail one after the other, faster than heartbeats are requested; or there are no results any more."""
    pool = pool_of(workers=1)
    assert len(pool.generate(tasks(task, "a", "b"), step=0)) == 3
    (fault,) = pool.workers.take_faults()
    assert fault.kind == "engine_died" and "ConnectionError: the engine is gone" in fault.cause


def test_a_worker_killed_by_rays_memory_monitor_is_lost_like_any_other():
    """Ray's memory monitor kills the largest worker; what its calls then raise is no RayActorError."""
    from ray.exceptions import ActorDiedError, ObjectLostError, OutOfMemoryError, RayTaskError

    from actors.rollout import EngineGoneError
    from actors.rollout_pool import _loss_kind

    gone, wrong = (RayTaskError("generate", "", error) for error in (EngineGoneError("dead"), ValueError("no token")))
    assert [_loss_kind(OutOfMemoryError("killed")), _loss_kind(ActorDiedError()), _loss_kind(gone)] == [
        "worker_died",
        "worker_died",
        "engine_died",
    ]
    assert [_loss_kind(wrong), _loss_kind(ObjectLostError("ab" * 28, None, ""))] == ["", ""]  # the worker lives


def test_a_replacement_that_is_lost_itself_is_a_fault_of_its_own(pool_of):
    pool = pool_of(workers=1)
    pool.workers.wait_ready(60)
    (slot,) = pool.workers.slots
    pool.workers.replace_worker(slot, "worker_died", "killed")
    pool.workers.replace_worker(slot, "worker_hung", "did not start")
    assert len(pool.generate(tasks("a"), step=0)) == 1
    assert kinds(pool) == ["worker_died", "worker_hung"]


def test_a_worker_that_dies_while_learners_work_is_replaced_meanwhile(pool_of, ray_cluster, tmp_path):
    from actors.worker.waiting import gather

    pool = pool_of(workers=1)
    pool.workers.wait_ready(60)
    first = pool.workers.slots[0].worker.location
    os.kill(first.pid, signal.SIGKILL)

    @ray_cluster.remote(num_cpus=0)
    def learns(folder):
        while not (folder / "back").exists():
            time.sleep(0.01)
        return "learned"

    def poll():
        pool.workers.poll()
        if pool.workers.slots[0].worker.location not in (None, first):
            (folder / "back").touch()

    folder = tmp_path
    answers = gather([learns.remote(folder)], timeout_s=60, doing="learn", failure=RuntimeError, poll=poll)
    assert answers == ["learned"] and kinds(pool) == ["worker_died"]


def pushed(pool, version, names=None):
    pool.workers.mark_recovered(list(pool.workers.load_weights([], version, timeout_s=30, only=names)))


def test_a_new_worker_gets_groups_only_when_it_holds_the_current_weights(pool_of):
    pool, supplied = pool_of(workers=1), []

    def supply():
        supplied.append(pool.workers.new_workers)
        pushed(pool, 7, pool.workers.new_workers)

    pool.workers.set_weight_sync(supply)
    pool.workers.wait_ready(60)
    pushed(pool, 7)
    (group,) = whole(pool.generate(tasks("talks"), step=0))  # its worker dies
    assert [turn.completion.policy_version for turn in group.trajectories_G[0].turns] == [7, 7, 7]
    assert [len(names) for names in supplied] == [1] and kinds(pool) == ["worker_died"]


def test_what_was_sampled_with_other_weights_is_refused(pool_of):
    from actors.rollout_group import RolloutError

    pool = pool_of(workers=1)
    pool.workers.wait_ready(60)
    pushed(pool, 7)
    pool.workers._version = pool.workers.slots[0].worker.version = (
        8  # as if a push had been believed that did not happen
    )
    with pytest.raises(RolloutError, match=r"sampled with weights \[7\], not 8"):
        pool.generate(tasks("speaks"), step=0)


def test_an_engine_that_fails_to_load_a_push_is_replaced_and_gets_it_later(pool_of, tmp_path):
    pool = pool_of(workers=2)
    pool.workers.set_weight_sync(lambda: pushed(pool, 3, pool.workers.new_workers))
    pool.workers.wait_ready(60)
    (tmp_path / "refuses-weights").touch()
    pushed(pool, 3)
    assert len(pool.generate(tasks(*"abcd"), step=0)) == 4
    while not (faults := pool.workers.take_faults()):
        pool.workers.poll()
        if pool.workers.new_workers:
            pushed(pool, 3, pool.workers.new_workers)
    assert [(fault.kind, fault.cause) for fault in faults] == [("push_interrupted", "ValueError: no such parameter")]


def test_weights_lost_with_their_learner_are_an_error_and_no_engine_samples_before_the_next_push(pool_of, ray_cluster):
    from actors.weight_buckets import WeightBucket, WeightsLostError
    from rl.weight_transfer.description import WeightTensor

    pool = pool_of(workers=1)
    pool.workers.wait_ready(60)

    class Learner:
        def weights(self):
            os._exit(1)

    # No value was ever there: one that had been might still lie where the engine reads it.
    learner = ray_cluster.remote(Learner).options(num_cpus=0).remote()
    lost = WeightBucket((WeightTensor("w", "uint8", (8,)),), ("sum",), learner.weights.remote())
    with pytest.raises(WeightsLostError, match="could not be fetched"):
        pool.workers.load_weights([lost], 5, timeout_s=60)
    assert len(pool.workers.new_workers) == 1 and kinds(pool) == []
    pool.workers.set_weight_sync(lambda: pushed(pool, 5))
    assert len(pool.generate(tasks("a"), step=0)) == 1


def test_a_worker_that_keeps_growing_is_replaced_between_two_steps(pool_of, tmp_path):
    pool = pool_of(workers=1, memory_growth_mib=100.0)
    pool.workers.wait_ready(60)
    for _ in range(7):
        assert pool.workers.stats()["engine/requests"] == 1.0
    (tmp_path / "grown").touch()
    assert pool.workers.stats()["memory/rollout_slope"] > 10
    (tmp_path / "grown").unlink()
    assert len(pool.generate(tasks("a"), step=0)) == 1
    (fault,) = pool.workers.take_faults()
    assert fault.kind == "recycled" and "grew by 200 MiB" in fault.cause


def test_a_worker_whose_engine_keeps_growing_on_its_device_is_replaced_too(pool_of, tmp_path):
    pool = pool_of(workers=1, device_memory_growth_mib=500.0)
    pool.workers.wait_ready(60)
    for _ in range(7):
        assert pool.workers.stats()["memory/rollout_device"] == 3000.0
    (tmp_path / "grown on the device").touch()
    assert pool.workers.stats()["memory/rollout_device"] == 4000.0
    (tmp_path / "grown on the device").unlink()
    assert len(pool.generate(tasks("a"), step=0)) == 1
    (fault,) = pool.workers.take_faults()
    assert fault.kind == "recycled" and "grew by 1000 MiB (rollout.device_memory_growth_mib)" in fault.cause


def test_a_fault_inside_a_worker_is_reported_with_the_workers_name(pool_of, tmp_path):
    pool = pool_of(workers=1)
    pool.workers.wait_ready(60)
    (tmp_path / "decoder broke").touch()
    pool.workers.stats()
    (fault,) = pool.workers.take_faults()
    assert (fault.kind, fault.worker, fault.recovery_s) == (
        "decoder_death",
        f"{pool.workers.slots[0].name}/decoder",
        0.2,
    )


def test_a_request_to_stop_ends_the_wait_within_a_second_or_so(pool_of):
    from rl.run.stop_signals import StopRequested

    asked = []

    def check():
        if asked:
            raise StopRequested(signal.SIGTERM)

    pool = pool_of(workers=1, check=check)
    pool.workers.wait_ready(60)
    asked.append(True)
    started = time.monotonic()
    with pytest.raises(StopRequested):
        pool.generate(tasks("hangs"), step=0)
    assert time.monotonic() - started < within(5)
