"""Striking: finds whom a fault is meant for among a run's own processes, and does it.

Workers are known by the titles that Ray gives its processes, decoders by their command; both are looked for in the
run's family only.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from rl.checkpoint.manifest import CheckpointError
from rl.checkpoint.store import CheckpointStore, open_checkpoint
from rl.fault_injection.run_process import Family
from rl.fault_injection.schedule import DAMAGE, KINDS, STOP, TERMINATE, Due, Mischief

CHAOS = "chaos.jsonl"  # one line per strike
CLASSES = {"rollout": "RolloutWorker", "reward": "RewardWorker", "learner": "LearnerWorker"}
DECODER = "envs.video.decode_process"
TITLE = re.compile(r"ray::(?:(?P<name>[^:#]+)[^:]*:)?(?P<of>\w+)(?:\.(?P<doing>\w+))?")  # ray::rollout/0#1:Class.method
LONGEST = 200  # characters of a title
LOOK_S = 0.5  # between two looks at all processes
STARTING = ("__init__", "start", "address", "load")  # methods; who stops in one of them has minutes to start
GLANCE_S = 0.02  # between two at a learner's title: a push may take a tenth of a second


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault as it was done."""

    time_s: float  # time.time()
    kind: str
    pid: int
    title: str  # of the process at that moment: whose it is, and what it was doing
    worker: str = ""  # "rollout/0"; empty if its title never told
    note: str = ""
    due_s: float = 0.0  # when it was to come, in seconds of steps; it waits until there is somebody to strike


class Striker:
    """Does what is due to one launch of a run. Faults that find nobody wait."""

    def __init__(self, family: Family, run_dir: Path, log: Path) -> None:
        self._family, self._run_dir, self._log = family, run_dir, log
        self._struck: set[psutil.Process] = set()  # nobody is struck twice: he may be stopped, not gone
        self._members: list[psutil.Process] = []
        self._names: dict[psutil.Process, str] = {}  # an idle worker's title does not tell
        self._looked = 0.0

    def strike(self, due: Due) -> Strike | None:
        """Do it, if there is somebody to do it to."""
        mischief = KINDS[due.kind]
        done = self._strike_run(due, mischief) if mischief.ends_the_run else self._strike_one(due, mischief)
        if done is not None:
            append(self._log, done)
        return done

    def look(self) -> None:
        """See who is there, unless that has just been seen."""
        if time.monotonic() - self._looked < LOOK_S:
            return
        self._members, self._looked = self._family.look(), time.monotonic()
        for member in self._members:
            if (told := TITLE.match(title_of(member))) and told["name"]:
                self._names[member] = told["name"]

    def _strike_one(self, due: Due, mischief: Mischief) -> Strike | None:
        victims = [one for one in self._all(mischief.whom) if one not in self._struck]
        if mischief.what == STOP:
            victims = [one for one in victims if doing(one) not in STARTING]
        victims.sort(key=lambda one: one.pid)
        if not victims or (mischief.during and not self._caught(mischief.during)):
            return None
        victim = victims[int(due.pick * len(victims))]
        try:
            title, now = title_of(victim), time.time()
            victim.suspend() if mischief.what == STOP else victim.kill()
        except psutil.NoSuchProcess:
            return None
        self._struck.add(victim)
        note = "during a push" if mischief.during else ""
        return Strike(now, due.kind, victim.pid, title, self._names.get(victim, ""), note, due.after_s)

    def _strike_run(self, due: Due, mischief: Mischief) -> Strike | None:
        if len(self._members) < 2 or self._family.has_ended:  # alone, the driver is not yet ready for signals
            return None
        if mischief.what == DAMAGE and not can_lose_newest(self._run_dir):
            return None
        root = self._members[0]
        title, note, now = title_of(root), "", time.time()
        if mischief.what == TERMINATE:
            root.terminate()
        else:
            count = self._family.kill()
            note = f"{count} processes"
            if mischief.what == DAMAGE:
                note += f", {flip_byte(newest(self._run_dir), random.Random(due.pick))}"
        return Strike(now, due.kind, root.pid, title, "", note, due.after_s)

    def _all(self, whom: str) -> list[psutil.Process]:
        return [member for member in self._members if role_of(title_of(member)) == whom]

    def _caught(self, method: str) -> bool:
        """Whether a learner rank does this, seen within the next fraction of a second."""
        ranks, deadline = self._all("learner"), time.monotonic() + LOOK_S
        while ranks and time.monotonic() < deadline:
            if any(doing(rank) == method for rank in ranks):
                return True
            time.sleep(GLANCE_S)  # nobody tells us when: a title can only be read
        return False


def title_of(process: psutil.Process) -> str:
    """What a process is called; empty if it is gone."""
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline()).strip()[:LONGEST]
    return ""


def role_of(title: str) -> str:
    """What a process with this title is to a run: a key of CLASSES, "decoder", or nothing."""
    told = TITLE.match(title)
    roles = [role for role, name in CLASSES.items() if told and told["of"] == name]
    return roles[0] if roles else "decoder" if DECODER in title else ""


def doing(process: psutil.Process) -> str:
    """The method that a worker is in; empty if it rests."""
    told = TITLE.match(title_of(process))
    return (told["doing"] or "") if told else ""


def newest(run_dir: Path) -> Path | None:
    """The newest checkpoint, whole or not."""
    return next(iter(CheckpointStore(run_dir).published().values()), None)


def can_lose_newest(run_dir: Path) -> bool:
    """Whether the newest checkpoint is whole, and another one beside it."""
    folders = list(CheckpointStore(run_dir).published().values())
    return len(folders) > 1 and _is_whole(folders[0]) and any(_is_whole(folder) for folder in folders[1:])


def _is_whole(folder: Path) -> bool:
    try:
        open_checkpoint(folder)
    except (CheckpointError, OSError):  # or it was removed as too old meanwhile
        return False
    return True


def flip_byte(checkpoint: Path, chance: random.Random) -> str:
    """Change one bit of one file of a checkpoint; says which."""
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.stat().st_size]
    path = files[chance.randrange(len(files))]
    place = chance.randrange(path.stat().st_size)
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << chance.randrange(8)]))
    return f"byte {place} of {path.relative_to(checkpoint.parent)}"


def append(path: Path, record: Any) -> None:
    """A dataclass as a JSON line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(record)) + "\n")
