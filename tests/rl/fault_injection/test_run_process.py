"""A run as a process tree: all of it is found and killed, reparented processes too, and no other process."""

import subprocess
import sys

import psutil
import pytest

from rl.fault_injection.run_process import ProcessTree, kill_process_tree, wait_gone
from tests.calibration import within

pytestmark = pytest.mark.thorough

DRIVER = """
import subprocess, sys, time
depth = int(sys.argv[1])
if depth:
    subprocess.Popen([sys.executable, "-c", sys.argv[2], str(depth - 1), sys.argv[2]], start_new_session=depth == 2)
if depth == 0:
    sys.stdout.write("all started\\n")
    sys.stdout.flush()
time.sleep(600)
"""


def test_a_process_tree_is_killed_at_once_whatever_sessions_it_has_and_no_other_process():
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    run = subprocess.Popen([sys.executable, "-c", DRIVER, "3", DRIVER], stdout=subprocess.PIPE, text=True)
    try:
        assert run.stdout.readline() == "all started\n"
        children = psutil.Process(run.pid).children(recursive=True)
        assert len(children) == 3

        assert kill_process_tree(run) == 4

        assert run.returncode == -9
        assert not [one for one in children if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.fixture
def tree_of_four():
    run = subprocess.Popen([sys.executable, "-c", DRIVER, "3", DRIVER], stdout=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "all started\n"
    tree = ProcessTree(run)
    yield run, tree
    tree.kill()


def test_a_reparented_process_still_belongs_to_the_tree(tree_of_four):
    run, tree = tree_of_four
    assert len(tree.refresh()) == 4
    orphans = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.wait(timeout=30)
    assert set(tree.refresh()) == set(orphans)
    assert tree.wait_gone(0.0) == [orphan.pid for orphan in orphans]


def test_a_tree_that_is_gone_is_empty(tree_of_four):
    _, tree = tree_of_four
    tree.refresh()
    assert tree.kill() == 4
    assert tree.refresh() == tree.alive() == tree.wait_gone(0.0) == []


STARTS_A_RUN = """
import subprocess, sys
from actors.cluster.session import end_with_parent
command = [sys.executable, "-c", "import signal; signal.pause()"]
run = subprocess.Popen(command, start_new_session=True, preexec_fn=end_with_parent)
print(run.pid, flush=True)
sys.stdin.read()
"""


def test_a_run_does_not_outlive_the_experiment_that_is_killed():
    """Started in a session of its own, it would go on training for nobody."""
    experiment = subprocess.Popen(
        [sys.executable, "-c", STARTS_A_RUN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    run = psutil.Process(int(experiment.stdout.readline()))
    experiment.kill()
    experiment.wait(timeout=within(60))
    assert wait_gone([run], within(60)) == []
