"""Asked to stop once: at a moment that suits; asked again: at once; asked by a whole process group: asked once."""

import os
import signal
import subprocess
import sys

import pytest

from rl.run.stop_signals import SAME_REQUEST_S, Requests, StopRequested, StopSignals


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    ("signals", "new"),
    [
        ([(signal.SIGTERM, 0.0), (signal.SIGTERM, 0.001)], [True, False]),  # `timeout`: its child, then the group
        ([(signal.SIGTERM, 0.0), (signal.SIGTERM, SAME_REQUEST_S)], [True, True]),
        ([(signal.SIGTERM, 0.0), (signal.SIGINT, 0.001)], [True, True]),
    ],
)
def test_the_same_signal_within_a_second_is_the_same_request(signals, new):
    clock = Clock()
    requests, found = Requests(clock), []
    for signum, clock.now in signals:
        found.append(requests.is_new(signum))
    assert found == new


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_is_asked_about_where_it_suits(signum):
    with StopSignals(grace_s=60.0) as signals:
        signals.check()
        os.kill(os.getpid(), signum)
        os.kill(os.getpid(), signum)
        with pytest.raises(StopRequested) as stop:
            signals.check()
    assert stop.value.exit_code == 128 + signum


COMMAND = """
import sys, time
from rl.run.stop_signals import exit_on_signals
exit_on_signals()
try:
    sys.stdout.write("ready\\n")
    sys.stdout.flush()
    time.sleep(600)
finally:
    sys.stdout.write("released\\n")
    sys.stdout.flush()
"""


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_command_that_is_no_run_yet_releases_what_it_has_even_where_sigint_is_ignored(signum, code):
    ignored = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731 - as nohup and many CI runners do
    command = subprocess.Popen([sys.executable, "-c", COMMAND], stdout=subprocess.PIPE, text=True, preexec_fn=ignored)
    assert command.stdout.readline() == "ready\n"
    command.send_signal(signum)
    command.send_signal(signum)
    assert command.wait(timeout=60) in (code, -signum)  # the second one may find an interpreter that is on its way out
    assert command.stdout.read() == "released\n"
