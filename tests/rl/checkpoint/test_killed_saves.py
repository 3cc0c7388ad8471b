"""Killed at any operation on files, a run finds its previous checkpoint or the new one whole, and saves again."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[3]
MEMORY = Path("/dev/shm")  # hundreds of saves flush to it for nothing


@pytest.fixture
def folder(tmp_path):
    """In memory where there is such a disk: what is tested is the order of operations, not the disk."""
    if not os.access(MEMORY, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        yield Path(name)


SCENARIOS = {  # what is done -> operations it has at least, whether it can be told which of both was found
    "next": (100, True),  # step 20 after step 10, keep_checkpoints=1: step 10 is removed here and on the remote
    "again": (50, False),  # step 10 once more: the only checkpoint there is makes room for itself
    "back": (100, True),  # step 15 after step 20: a future is set aside here and on the remote
    "fetch": (40, True),  # a resumed run brings step 10 from the remote
}


@pytest.mark.parametrize(
    "scenario",
    ["next", *(pytest.param(other, marks=pytest.mark.cli) for other in ("again", "back", "fetch"))],  # not in seconds
)
def test_a_kill_at_any_operation_of_a_save_loses_nothing(folder, scenario):
    """The rank's files, the policy, the manifest, the pointers, the removal of old ones, and the remote's copy."""
    found = subprocess.run(
        [sys.executable, ROOT / "tests" / "rl" / "checkpoint" / "killed_saves.py", folder, scenario],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    outcomes, (operations, either) = json.loads(found.stdout), SCENARIOS[scenario]
    assert sum(outcomes.values()) >= operations
    assert outcomes["new"] > 0 and (outcomes.get("previous", 0) > 0) == either
