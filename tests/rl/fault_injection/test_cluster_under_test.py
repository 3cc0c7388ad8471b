"""What happens to a cluster under test: what passes is ended, a lost node gets a successor, nothing is counted that was
not done. With real machines: tests/test_nodes.py and tests/test_chaos.py."""

import io
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest

from rl.config.file import load_config
from rl.fault_injection import cluster_under_test
from rl.fault_injection.cluster_under_test import BALLAST, ClusterUnderTest, _count_lines
from rl.fault_injection.machines import MachinesError
from rl.fault_injection.schedule import FAULT_TYPES

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"


class Node:
    """A machine; what it is told is kept."""

    def __init__(self, number):
        self.address, self.root, self.is_up, self.told = f"10.77.0.{number}", SimpleNamespace(pid=0), True, []

    def limit_network(self, mbit):
        self.told.append(mbit)

    def kill(self):
        self.is_up = False


class Cluster:
    """A head and nodes; as many joins fail as it is told."""

    def __init__(self, failing=0):
        self.nodes, self.failing = [Node(number) for number in range(3)], failing

    def add_node(self, cpus):
        if self.failing:
            self.failing -= 1
            raise MachinesError("Ray did not start")
        self.nodes.append(Node(len(self.nodes)))
        return self.nodes[-1]


class AtOnce:
    """A pool whose work is done when it is given."""

    def submit(self, work, *arguments):
        future = Future()
        try:
            future.set_result(work(*arguments))
        except MachinesError as error:
            future.set_exception(error)
        return future


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A cluster under test as it is while a launch runs, and a clock to set."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(cluster_under_test.time, "monotonic", lambda: clock.now)
    made = ClusterUnderTest(load_config([QUICKSTART], [f"output_dir={tmp_path}"]), nodes=2)
    made._cluster, made._pool, made._tree = Cluster(), AtOnce(), SimpleNamespace(add=lambda pid: None)
    return made, clock


def test_a_lost_node_gets_a_successor_which_is_tried_until_it_joins(cluster):
    under_test, _ = cluster
    under_test._cluster.failing = 2
    struck = under_test.strike(FAULT_TYPES["node_killed"], 0.0)
    assert (struck.what, struck.note) == ("node/10.77.0.1", "with no workers")
    assert under_test.strike(FAULT_TYPES["node_killed"], 0.0) is None  # not before it has a successor
    for _ in range(3):
        under_test.refresh()
    assert [node.address for node in under_test._up()] == ["10.77.0.2", "10.77.0.3"]


def test_a_slow_network_is_fast_again_after_its_time_and_the_node_is_no_target_meanwhile(cluster):
    under_test, clock = cluster
    struck = under_test.strike(FAULT_TYPES["node_network_slow"], 0.0)
    (_, slow, other) = under_test._cluster.nodes
    assert struck.what == f"node/{slow.address}" and slow.told == [2.0]
    assert under_test.strike(FAULT_TYPES["node_killed"], 0.0).what == f"node/{other.address}"
    clock.now = 19.0
    under_test.refresh()
    assert slow.told == [2.0]
    clock.now = 20.0
    under_test.refresh()
    assert slow.told == [2.0, 0]


def test_a_full_disk_stays_full_and_is_given_back(cluster, tmp_path, monkeypatch):
    under_test, clock = cluster
    taken = []
    monkeypatch.setattr(cluster_under_test, "_take_room", lambda ballast: taken.append(ballast.name))
    assert under_test.strike(FAULT_TYPES["disk_full"], 0.0).what == "disk"
    assert under_test.strike(FAULT_TYPES["disk_full"], 0.0) is None
    under_test.refresh()
    assert taken == [str(tmp_path / BALLAST)] * 2 and (tmp_path / BALLAST).exists()
    clock.now = 20.0
    under_test.refresh()
    assert not (tmp_path / BALLAST).exists() and under_test.strike(FAULT_TYPES["disk_full"], 0.0) is not None


def test_one_end_that_fails_leaves_no_other_undone(cluster):
    under_test, clock = cluster
    under_test.strike(FAULT_TYPES["node_network_slow"], 0.0)
    under_test._pass(None, lambda: 1 / 0)
    clock.now = 20.0
    with pytest.raises(ZeroDivisionError):
        under_test.refresh()
    assert under_test._cluster.nodes[1].told == [2.0, 0] and under_test._passing == []


@pytest.mark.parametrize(("printed", "enough", "count"), [("a\nb\nc\n", 2, 3), ("a\n", 2, 1), ("", 1, 0)])
def test_lines_are_counted_until_they_are_enough_or_nothing_comes_any_more(printed, enough, count):
    process = subprocess.Popen([sys.executable, "-c", f"print({printed!r}, end='')"], stdout=subprocess.PIPE)
    process.wait(60)
    assert _count_lines(process, enough, within_s=60.0) == count


def test_a_disk_is_filled_to_its_last_page(monkeypatch):
    room, pieces = 3 * 64 * 2**20 + 5 * 2**20 + 7 * 4096, []

    def allocate(fd, offset, size):
        if sum(pieces) + size > room:
            raise OSError(28, "No space left on device")
        pieces.append(size)

    monkeypatch.setattr(cluster_under_test.os, "posix_fallocate", allocate)
    monkeypatch.setattr(cluster_under_test.os, "fstat", lambda fd: SimpleNamespace(st_size=sum(pieces)))
    monkeypatch.setattr(cluster_under_test.mmap, "PAGESIZE", 4096)
    cluster_under_test._take_room(SimpleNamespace(fileno=io.BytesIO().__hash__))
    assert sum(pieces) == room
