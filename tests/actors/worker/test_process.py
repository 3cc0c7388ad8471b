"""A worker that fails is named once, with its node, its log file and the end of that log; calls show the step."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from rl.trajectory import WorkerFailure

pytestmark = pytest.mark.ray

REPOSITORY = Path(__file__).parents[3]


class Worker:
    """Prints, raises or dies as it is told to."""

    def __init__(self, dies=False):
        sys.stdout.write("loading the weights\n")
        if dies:
            raise RuntimeError("no such weights")

    def location(self):
        from actors.worker.process import own_location

        return own_location()

    def print_and_die(self, lines):
        for number in range(lines):
            sys.stdout.write(f"line {number}\n")
        sys.stderr.write("Segmentation fault\n")
        os.kill(os.getpid(), signal.SIGKILL)

    def fail(self):
        sys.stdout.write("about to fail\n")
        raise ValueError("the optimizer diverged")

    def hang(self):
        time.sleep(600)

    def wait_for(self, others):
        import ray

        ray.get(list(others), timeout=60)


@pytest.fixture
def started(ray_cluster):
    """An actor and its WorkerProcess."""
    from actors.worker.process import WorkerProcess

    actors = []

    def start(name, **arguments):
        actor = ray_cluster.remote(Worker).options(name=name, num_cpus=0.1).remote(**arguments)
        actors.append(actor)
        return actor, WorkerProcess(name, actor.location.remote())

    yield start
    for actor in actors:
        ray_cluster.kill(actor)


def gather_from(actors_and_processes, calls, doing="update the policy"):
    from actors.worker.waiting import WorkerError, gather

    processes = [process for _, process in actors_and_processes]
    with pytest.raises(WorkerError) as raised:
        gather(calls, timeout_s=60, doing=doing, failure=WorkerError, processes=processes)
    return raised.value


def test_a_worker_that_dies_is_logged_once_with_its_node_its_log_and_its_last_20_lines(started, caplog):
    actor, process = started("video-r1/learner/0")
    error = gather_from([(actor, process)], [actor.print_and_die.remote(30)])
    failure = error.failure
    assert failure.worker == "video-r1/learner/0" and failure.pid > 0 and failure.node
    assert failure.last_lines == (*(f"line {number}" for number in range(11, 30)), "Segmentation fault")
    assert Path(failure.log).read_text().endswith("Segmentation fault\n")
    said = [record.getMessage() for record in caplog.records if "Segmentation fault" in record.getMessage()]
    assert said == [str(failure)] and said[0].startswith(
        f"video-r1/learner/0, process {failure.pid} on node {failure.node}"
    )


def test_a_worker_that_raises_is_known_by_its_log_too(started):
    actor, process = started("r/reward/0")
    error = gather_from([(actor, process)], [actor.fail.remote()], doing="score")
    assert str(error) == "could not score: ValueError: the optimizer diverged"
    assert error.failure.last_lines == ("loading the weights", "about to fail")


def test_a_worker_that_never_started_is_found_by_what_ray_says_of_it(started):
    actor, process = started("r/rollout/0", dies=True)
    error = gather_from([(actor, process)], [actor.fail.remote()], doing="start")
    assert "no such weights" in str(error) and process.location is None
    assert "loading the weights" in error.failure.last_lines and error.failure.log.endswith((".out", ".err"))


def test_of_workers_that_fail_for_the_sake_of_one_that_died_the_dead_one_is_blamed(started):
    first, second = started("r/learner/0"), started("r/learner/1")
    dead = second[0].print_and_die.remote(1)
    error = gather_from([first, second], [first[0].wait_for.remote([dead]), dead])
    assert error.failure.worker == "r/learner/1" and "a worker died" in str(error)


def test_a_worker_without_an_answer_is_named_too(started):
    from actors.worker.waiting import WorkerError, gather

    actor, process = started("r/learner/0")
    with pytest.raises(WorkerError, match="no answer within 1 s") as raised:
        gather([actor.hang.remote()], timeout_s=1.0, doing="wait", failure=WorkerError, processes=[process])
    assert raised.value.failure.worker == "r/learner/0"


def test_a_failure_reads_as_one_line_and_the_end_of_the_log():
    failure = WorkerFailure("r/rollout/0", "10.0.0.2", 77, "/tmp/ray/worker-77.out", ("one", "two"))
    assert str(failure) == (
        "r/rollout/0, process 77 on node 10.0.0.2; its log: /tmp/ray/worker-77.out, which ends with\n  | one\n  | two"
    )
    assert str(WorkerFailure("r/rollout/0", "", 0, "", ())) == (
        "r/rollout/0, process unknown on node unknown; its log: not found"
    )


@pytest.mark.parametrize(
    ("out", "err", "lines"),
    [
        (":job_id:01000000\n:actor_name:r/rollout/0\nhello\n", "", ("hello",)),
        ("", "", ()),
        ("x" * 10_000 + "\n", "", ("x" * 500,)),
        ("\n\n  \nlast\n", ":task_name:f\n", ("last",)),
    ],
)
def test_of_a_log_the_lines_that_somebody_wrote_are_read(tmp_path, out, err, lines):
    from actors.worker.process import read_log

    file = tmp_path / "worker-abc-01000000-77.out"
    file.write_text(out)
    file.with_suffix(".err").write_text(err)
    assert read_log(77, str(file))[1] == lines


def test_a_log_of_gigabytes_is_read_from_its_end(tmp_path):
    from actors.worker.process import LAST_LINES, read_log

    file = tmp_path / "worker-abc-01000000-77.out"
    with file.open("wb") as log:
        log.truncate(3 * 2**30)  # sparse
        log.seek(0, os.SEEK_END)
        log.write(b"\n" + b"".join(b"line %d\n" % number for number in range(100)))
    assert read_log(77, str(file))[1] == tuple(f"line {number}" for number in range(100 - LAST_LINES, 100))


def test_a_log_that_is_gone_is_no_error(tmp_path):
    from actors.worker.process import read_log

    assert read_log(77, str(tmp_path / "worker-abc-77.out"))[1] == ()


ON_ANOTHER_NODE = """
import ray, sys
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from actors.worker.process import WorkerProcess
from tests.actors.test_node_loss import HEALTH
from tests.actors.worker.test_process import Worker, gather_from

options = {"num_cpus": 2, "object_store_memory": 80 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={**options, "_system_config": HEALTH})
other = cluster.add_node(**options)
ray.init(cluster.address, log_to_driver=False)
there = NodeAffinitySchedulingStrategy(node_id=other.node_id, soft=False)
killed, lost = [ray.remote(Worker).options(scheduling_strategy=there).remote() for _ in range(2)]
first, second = [WorkerProcess(f"r/rollout/{i}", one.location.remote()) for i, one in enumerate((killed, lost))]
assert ray.get(first.started, timeout=60).node_id == other.node_id
failure = gather_from([(killed, first)], [killed.print_and_die.remote(3)]).failure
assert ray.get(second.started, timeout=60).node_id == other.node_id != ray.get_runtime_context().get_node_id()
assert failure.last_lines == ("loading the weights", "line 0", "line 1", "line 2", "Segmentation fault"), failure
cluster.remove_node(other, allow_graceful=False)
failure = gather_from([(lost, second)], [lost.fail.remote()]).failure
assert (failure.last_lines, failure.pid) == ((), second.location.pid) and failure.log, failure
ray.shutdown()
cluster.shutdown()
"""


def test_a_log_on_another_node_is_read_there_and_of_a_lost_node_its_path_is_known():
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        answer = subprocess.run(
            [sys.executable, "-c", ON_ANOTHER_NODE],
            cwd=REPOSITORY,
            env=os.environ
            | {"RAY_TMPDIR": folder, "PYTHONPATH": str(REPOSITORY)}
            | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert answer.returncode == 0, answer.stderr[-3000:]


def test_calls_and_errors_of_workers_show_the_step(ray_cluster):
    from actors.worker.label import WorkerLabel, label

    class Labelled:
        def __init__(self):
            self._label = WorkerLabel()

        def __repr__(self):
            return str(self._label)

        def work(self, step):
            self._label.at(step)
            Path(os.environ["TITLE"]).write_text(Path("/proc/self/cmdline").read_text().split("\0")[0])
            raise ValueError("wrong")

    with tempfile.TemporaryDirectory() as folder:
        title = Path(folder) / "title"
        options = {"name": "video-r1/learner/0", "runtime_env": {"env_vars": {"TITLE": str(title)}}}
        worker = ray_cluster.remote(Labelled).options(num_cpus=0.1, **options).remote()
        call = worker.work.options(name=label("video-r1/learner/0", 6)).remote(6)
        with pytest.raises(ValueError, match="wrong") as raised:
            ray_cluster.get(call, timeout=60)
        ray_cluster.kill(worker)
        assert title.read_text() == "ray::video-r1/learner/0, step 7"
    assert "repr=video-r1/learner/0, step 7)" in str(raised.value)


@pytest.mark.parametrize(
    ("step", "shown"), [(None, "r/rollout/0"), (0, "r/rollout/0, step 1"), (-1, "r/rollout/0, evaluation")]
)
def test_a_label_counts_steps_from_one(step, shown):
    from actors.worker.label import label

    assert label("r/rollout/0", step) == shown
