"""Workers on one GPU start one after the other; those on others do not wait."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from actors.cluster.gpu_turn import GpuTurnError, gpu_turn

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


def lock_of(folder):
    return folder / f"dynframe-rl-{os.getuid()}-gpu-0.lock"


def test_a_link_planted_under_a_locks_name_is_refused_and_its_target_left_alone(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    lock_of(tmp_path).symlink_to(precious)
    with pytest.raises(GpuTurnError, match=r"gpu-0\.lock: cannot be opened .*; delete it, or set TMPDIR"):
        gpu_turn([0], 1, tmp_path).__enter__()
    assert precious.read_text() == "mine"


def test_a_lock_that_cannot_be_opened_is_named_with_what_to_do(tmp_path):
    lock_of(tmp_path).mkdir()
    with pytest.raises(GpuTurnError, match=r"gpu-0\.lock: cannot be opened as a lock \(Is a directory\); delete it"):
        gpu_turn([0], 1, tmp_path).__enter__()


def test_somebody_elses_lock_is_refused(tmp_path, monkeypatch):
    with gpu_turn([0], 1, tmp_path):
        pass
    (found,) = tmp_path.iterdir()
    assert found.stat().st_mode & 0o777 == 0o600
    stranger = os.getuid() + 1
    found.rename(tmp_path / found.name.replace(str(os.getuid()), str(stranger)))
    monkeypatch.setattr(os, "getuid", lambda: stranger)
    with pytest.raises(GpuTurnError, match=rf"belongs to user {stranger - 1}, not to {stranger}; delete it"):
        gpu_turn([0], 1, tmp_path).__enter__()
