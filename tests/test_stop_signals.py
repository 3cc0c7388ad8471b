"""The suite itself: one signal ends it, and what its fixtures started is stopped."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.calibration import slowness, within

REPOSITORY = Path(__file__).parents[1]
WAITING = """
import signal
import sys
import threading
from pathlib import Path
import pytest

@pytest.fixture
def engine():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # as ray.init does
    yield
    Path("torn_down").touch()

def test_that_waits(engine):
    try:
        Path("started").write_text("")
        threading.Event().wait()
    except KeyboardInterrupt:
        if not swallows:
            raise

def test_that_is_not_reached():
    Path("went_on").touch()
"""


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("workers", "signum", "inherited", "swallows"),
    [
        (0, signal.SIGINT, signal.SIG_DFL, False),
        (0, signal.SIGINT, signal.SIG_IGN, True),
        (0, signal.SIGTERM, signal.SIG_DFL, True),
        (0, signal.SIGTERM, signal.SIG_IGN, False),
        (1, signal.SIGINT, signal.SIG_IGN, False),
        (1, signal.SIGTERM, signal.SIG_DFL, True),
    ],
)
def test_one_signal_ends_the_suite_and_tears_its_fixtures_down(signum, inherited, swallows, workers, tmp_path):
    """Also where the test that runs takes the interruption for an error of its own and goes on, and where it runs in a
    worker process that the signal did not reach."""
    (tmp_path / "test_waiting.py").write_text(f"swallows = {swallows}\n{WAITING}")
    os.mkfifo(tmp_path / "started")
    plugins = ("-p", "tests.stop_signals", "-p", "no:cacheprovider")
    suite = subprocess.Popen(
        [sys.executable, "-m", "pytest", *plugins, "-n", str(workers), "test_waiting.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, inherited),
    )
    (tmp_path / "started").read_bytes()  # until the test opens the other end
    suite.send_signal(signum)
    told, _ = suite.communicate(timeout=within(60))
    assert suite.returncode == pytest.ExitCode.INTERRUPTED and f"stopped by {signal.Signals(signum).name}" in told
    assert (tmp_path / "torn_down").exists() and not (tmp_path / "went_on").exists()


def test_a_busy_machine_gets_more_time_and_an_idle_one_no_less():
    assert slowness() >= 1 and within(10) >= 10
