"""Which processes of a run are rollout, reward and learner workers or decoders, and what they are doing.

Workers are known by the titles that Ray gives its processes, decoders by their command line.
"""

from __future__ import annotations

import contextlib
import re
import time

import psutil

from rl.fault_injection.run_process import ProcessTree

CLASSES = {"rollout": "RolloutWorker", "reward": "RewardWorker", "learner": "LearnerWorker"}
DECODER = "envs.video.decode_process"
TITLE = re.compile(  # ray::Class.method · ray::RUN/rollout/0#1:Class.method · ray::RUN/rollout/0, step 7
    r"ray::(?:(?:[^:]*/)?(?P<name>(?P<role>rollout|reward|learner)/\d+)(?:[#,][^:]*)?:?)?"
    r"(?:(?P<class>\w+)(?:\.(?P<method>\w+))?)?"
)
MAX_TITLE = 200  # characters
REFRESH_S = 0.5  # between two readings of the process table
POLL_TITLE_S = 0.02  # between two readings of a learner's title: a push may take a tenth of a second


class ProcessFinder:
    """The processes of one launch of a run, by role."""

    def __init__(self, tree: ProcessTree) -> None:
        self._tree = tree
        self._members: list[psutil.Process] = []
        self._names: dict[psutil.Process, str] = {}  # the title of an idle worker has no name in it
        self._refreshed = 0.0

    def refresh(self) -> None:
        """Read the process table, unless that was done a moment ago."""
        if time.monotonic() - self._refreshed < REFRESH_S:
            return
        self._members, self._refreshed = self._tree.refresh(), time.monotonic()
        for member in self._members:
            if (title := TITLE.match(title_of(member))) and title["name"]:
                self._names[member] = title["name"]

    @property
    def driver(self) -> psutil.Process | None:
        """The driver of a run that is up; None: it has ended, or has no workers and no signal handlers yet."""
        return None if len(self._members) < 2 or self._tree.has_ended else self._members[0]

    def of_role(self, role: str) -> list[psutil.Process]:
        """All processes of a role, as in `role_of`, by process id."""
        found = [member for member in self._members if role_of(title_of(member)) == role]
        return sorted(found, key=lambda process: process.pid)

    def worker_name(self, process: psutil.Process) -> str:
        """Such as "rollout/0"; empty if its title has never shown it."""
        return self._names.get(process, "")

    def learner_is_in(self, method: str) -> bool:
        """Whether a learner rank runs this method, now or within half a second."""
        ranks, deadline = self.of_role("learner"), time.monotonic() + REFRESH_S
        while ranks and time.monotonic() < deadline:
            if any(method_of(rank) == method for rank in ranks):
                return True
            time.sleep(POLL_TITLE_S)  # a title can only be polled
        return False


def title_of(process: psutil.Process) -> str:
    """The title of a process; empty if it is gone."""
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline()).strip()[:MAX_TITLE]
    return ""


def role_of(title: str) -> str:
    """The role of a process with this title: a key of CLASSES, "decoder", or empty."""
    found = TITLE.match(title)
    if found and found["role"]:
        return found["role"]
    roles = [role for role, name in CLASSES.items() if found and found["class"] == name]
    return roles[0] if roles else "decoder" if DECODER in title else ""


def method_of(process: psutil.Process) -> str:
    """The method that a worker is running; empty if it is idle."""
    found = TITLE.match(title_of(process))
    return (found["method"] or "") if found else ""
