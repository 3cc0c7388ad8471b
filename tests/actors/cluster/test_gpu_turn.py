"""Workers on one GPU start one after the other; those on others do not wait."""

import subprocess
import sys
from pathlib import Path

import pytest

from actors.cluster.gpu_turn import gpu_turn

ROOT = Path(__file__).parents[3]
HOLD = """
import sys
from actors.cluster.gpu_turn import gpu_turn
with gpu_turn([0], 5, sys.argv[1]):
    print("mine", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def other(tmp_path):
    """A process that has its turn on GPU 0."""
    held = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert held.stdout.readline() == "mine\n"
    yield held
    held.kill()
    held.wait()


def test_a_worker_waits_for_the_one_that_starts_on_its_gpu_and_no_longer_than_its_deadline(other, tmp_path):
    with (
        pytest.raises(TimeoutError, match="another worker on GPU 0 has not started within 0 s"),
        gpu_turn([0], 0.01, tmp_path),
    ):
        pass
    with gpu_turn([1], 0.01, tmp_path), gpu_turn([], 0.01, tmp_path):
        pass
    other.stdin.write("\n")
    other.stdin.flush()
    with gpu_turn([0, 1], 30, tmp_path):
        pass


def test_a_worker_that_dies_in_its_turn_gives_it_up(other, tmp_path):
    other.kill()
    with gpu_turn([0], 30, tmp_path):
        pass
