"""A run as a process: all of it is found and killed, whoever was orphaned meanwhile, and nobody else."""

import subprocess
import sys

import psutil
import pytest

from rl.fault_injection.run_process import Family, kill_everything_of

FAMILY = """
import subprocess, sys, time
depth = int(sys.argv[1])
if depth:
    subprocess.Popen([sys.executable, "-c", sys.argv[2], str(depth - 1), sys.argv[2]], start_new_session=depth == 2)
if depth == 0:
    sys.stdout.write("all are here\\n")
    sys.stdout.flush()
time.sleep(600)
"""


def test_a_whole_family_is_killed_at_once_whatever_sessions_it_has_and_nobody_else():
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    run = subprocess.Popen([sys.executable, "-c", FAMILY, "3", FAMILY], stdout=subprocess.PIPE, text=True)
    try:
        assert run.stdout.readline() == "all are here\n"
        family = psutil.Process(run.pid).children(recursive=True)
        assert len(family) == 3

        assert kill_everything_of(run) == 4

        assert run.returncode == -9
        assert not [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.fixture
def family_of_four():
    run = subprocess.Popen([sys.executable, "-c", FAMILY, "3", FAMILY], stdout=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "all are here\n"
    family = Family(run)
    yield run, family
    family.kill()


def test_whoever_is_orphaned_is_still_of_the_family(family_of_four):
    run, family = family_of_four
    assert len(family.look()) == 4
    orphans = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.wait(timeout=30)
    assert set(family.look()) == set(orphans)
    assert family.wait_gone(0.0) == [orphan.pid for orphan in orphans]


def test_a_family_that_is_gone_is_empty(family_of_four):
    _, family = family_of_four
    family.look()
    assert family.kill() == 4
    assert family.look() == family.left() == family.wait_gone(0.0) == []
