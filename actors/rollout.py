"""Rollout workers: a vLLM engine and the retrieval environment in one process, driven as a pool that mends itself.

What a worker's siblings have said is known to the driver turn by turn (the token ledger, read with every pulse). When
a worker dies, hangs, or its engine fails, its groups go on elsewhere from there, with the seeds they would have had;
another worker starts in its place meanwhile, and plays once it holds the current weights.

Only what a call of this driver's returns is ever used, so a worker that lives on after it was given up changes nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from actors.frames import park
from actors.memory import GrowthGuard, own_memory_mib
from actors.player import Player
from actors.waiting import COLLECT_S, GLANCE_S, first_line, nothing
from actors.watchdog import ProgressWatch, Whereabouts, stacks_of
from actors.weight_buckets import WeightBucket, WeightsLostError, unpack
from envs.rollout import TokenLedger, occurrences
from rl.trajectory import Completion, Fault, TrajectoryGroup, VideoTask, trajectory_tokens

log = logging.getLogger(__name__)

LOSSES = 4  # workers that a group may lose, or a place in a row, before the fault is its own
FAILURES = 2  # times a group may fail in a worker that lives


class RolloutError(RuntimeError):
    """A task cannot be played, or no worker is left that could."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """A sign of life."""

    progress: int  # grows as long as the worker gets on
    news: Mapping[int, list[tuple[int, Completion]]]  # by call: siblings' turns since the last pulse
    failure: str  # why the engine will not answer any more; empty while it lives


class RolloutWorker:
    """Plays whole groups. Holds an engine and the environment; async, so that groups share the engine's batch."""

    def __init__(self, make_player: Callable[[], Player]) -> None:
        self._player = make_player()
        self._ledgers: dict[int, TokenLedger] = {}  # of the groups being played
        self._done = 0  # progress of those that were

    async def generate(
        self,
        call: int,
        task: VideoTask,
        step: int,
        occurrence: int,
        greedily: bool,
        said: Mapping[int, Sequence[Completion]],
    ) -> TrajectoryGroup:
        """One group of siblings (one trajectory if greedily), its pixels parked in the object store."""
        ledger = self._ledgers[call] = TokenLedger(said)
        try:
            played = self._player.play(task, step=step, occurrence=occurrence, greedily=greedily, ledger=ledger)
            return park(await played)
        finally:
            self._done += 1 + ledger.advances
            del self._ledgers[call]

    async def pulse(self) -> Pulse:
        """Life, and what was said since the last one."""
        news = {call: turns for call, ledger in self._ledgers.items() if (turns := ledger.take_news())}
        advances = self._done + sum(ledger.advances for ledger in self._ledgers.values())
        return Pulse(advances + self._player.engine.progress(), news, self._player.engine.failure())

    async def whereabouts(self) -> Whereabouts:
        """Answered once the engine has loaded its policy."""
        return Whereabouts(ray.get_runtime_context().get_node_id(), os.getpid())

    async def load_weights(self, buckets: list[WeightBucket], version: int) -> None:
        """Take over new weights; no request may be running. Off the event loop, so that the pulse goes on.

        Raises:
            WeightsLostError: they are gone with the learner that held them; the engine holds a part of them.
        """
        try:
            await asyncio.to_thread(self._player.engine.load_weights, unpack(buckets), version)
        except Exception as error:
            if isinstance(error.__cause__, WeightsLostError):
                raise error.__cause__ from None
            raise

    async def checksums(self, names: list[str]) -> dict[str, str]:
        """sha256 of parameters as the engine holds them."""
        return await asyncio.to_thread(self._player.engine.checksums, names)

    async def stats(self) -> dict[str, float]:
        """Engine counters since the last call, and the memory of this process and those it started."""
        return {**self._player.engine.stats(), "memory_mib": own_memory_mib(with_children=True)}


@dataclass(slots=True)
class Place:
    """A worker's place in the pool, and what the driver knows of whoever holds it. `number` tells them apart."""

    name: str
    actor: Any
    born: ray.ObjectRef
    watch: ProgressWatch
    memory: GrowthGuard
    number: int = 0
    since: float = field(default_factory=time.monotonic)  # it was asked to start
    where: Whereabouts | None = None  # once it has started
    version: int | None = None  # of the weights it confirmed; None: those it found on disk
    pulse: ray.ObjectRef | None = None
    felt: float = 0.0  # when it was last asked for a pulse
    playing: int = 0  # groups
    losses: int = 0  # in a row
    lost: Fault | None = None  # why its predecessor is gone, until it has taken over


@dataclass(slots=True)
class Job:
    """A group to play, and what its siblings have said so far."""

    index: int  # of its task
    task: VideoTask
    occurrence: int
    said: dict[int, list[Completion]] = field(default_factory=dict)
    losses: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """A job in the hands of a worker."""

    call: int
    job: Job
    place: Place
    number: int  # the worker's


class RolloutPool:
    """Driver's end of the rollout workers."""

    def __init__(
        self,
        make_player: Callable[[], Player],
        num_workers: int,
        options: Callable[[int], Mapping[str, Any]],
        *,
        timeout_s: float,
        stall_timeout_s: float = 180.0,
        start_timeout_s: float = 600.0,
        memory_growth_mib: float = 0.0,
        check: Callable[[], None] = nothing,
    ) -> None:
        """
        Args:
            timeout_s: of a whole `generate`; in `play`, of the time in which no group is finished.
            stall_timeout_s: a worker with work that does not get on for so long hangs.
            memory_growth_mib: a worker that has grown by more is replaced between two steps; 0: never.
            check: called about once a second while waiting; what it raises ends the wait.
        """
        self._make_player, self._options = make_player, options
        self._timeout_s, self._stall_timeout_s, self._start_timeout_s = timeout_s, stall_timeout_s, start_timeout_s
        self._memory_growth_mib, self._check = memory_growth_mib, check
        self._serial = itertools.count()
        self._version: int | None = None  # of the weights that were pushed; None: none were
        self._supply: Callable[[], None] = nothing
        self._faults: list[Fault] = []
        self._places = [self._open(index) for index in range(num_workers)]

    def wait_ready(self, timeout_s: float) -> None:
        """Return when every engine has loaded its policy.

        Raises:
            RolloutError: one did not, with its reason.
        """
        deadline = time.monotonic() + timeout_s
        while starting := [place for place in self._places if place.where is None]:
            ready, _ = ray.wait([place.born for place in starting], timeout=GLANCE_S)
            for place in starting:
                if place.born in ready:
                    place.where = self._answer(place.born, "start")
            self._check()
            if not ready and time.monotonic() > deadline:
                raise RolloutError(f"could not start: {starting[0].name} gave no answer within {timeout_s:.0f} s")

    def supplied_by(self, supply: Callable[[], None]) -> None:
        """Who gives the current weights to `newcomers` (they do not play before)."""
        self._supply = supply

    @property
    def newcomers(self) -> list[str]:
        """Workers that have started and do not hold the weights that were pushed."""
        return [place.name for place in self._places if place.where and place.version != self._version]

    def generate(
        self, tasks: Sequence[VideoTask], *, step: int, attempt: int = 0, greedily: bool = False
    ) -> list[TrajectoryGroup]:
        """A group per task, in order: sampled siblings, or one greedy trajectory.

        Args:
            attempt: 1, 2, ... for the replacements of degenerate groups: with step and task it determines the seeds.
        Raises:
            RolloutError: a task cannot be played, or not all were within the deadline.
        """
        jobs = _jobs(tasks, attempt)
        played: dict[int, TrajectoryGroup] = {}
        for finished in self._play(jobs, step, greedily, in_flight=len(jobs), patience_is_of_all=True):
            played |= dict(finished)
        return [played[index] for index in range(len(tasks))]

    def play(
        self, tasks: Sequence[VideoTask], *, step: int, greedily: bool, in_flight: int
    ) -> Iterator[list[tuple[int, TrajectoryGroup]]]:
        """Groups as they finish, each with its task's index: all that are ready, at least one at a time.

        A worker gets its next task when it has finished one, so none is idle while another has a queue.

        Args:
            in_flight: tasks at a time, per worker.
        Raises:
            RolloutError: a task cannot be played, or nothing finished within the deadline. What else had finished by
                then is handed over first.
        """
        yield from self._play(_jobs(tasks), step, greedily, in_flight)

    def restore(self, groups: Sequence[TrajectoryGroup]) -> list[TrajectoryGroup]:
        """The same groups with their pixels decoded anew: those in the object store died with their worker.

        Raises:
            RolloutError: the video no longer gives the frames it gave.
        """
        jobs = _jobs([group.task for group in groups])
        for job, group in zip(jobs, groups, strict=True):
            job.said = {i: [turn.completion for turn in t.turns] for i, t in enumerate(group.trajectories_G)}
        restored: dict[int, TrajectoryGroup] = {}
        for finished in self._play(jobs, 0, False, in_flight=len(jobs), patience_is_of_all=True):
            restored |= dict(finished)
        for index, old in enumerate(groups):
            if _ledgers(restored[index]) != _ledgers(old):
                raise RolloutError(f"{old.task.video_path}: the frames of task {old.task.task_id} were lost with their "
                                   "worker, and the video no longer gives the same")  # fmt: skip
        self._faults.append(
            Fault("frames_lost", "rollout", f"pixels of {len(groups)} groups", "decoded anew", time.time(), 0.0)
        )
        return [restored[index] for index in range(len(groups))]

    def load_weights(self, buckets: list[WeightBucket], version: int, *, timeout_s: float, only: Sequence[str] = ()):
        """Give engines the weights of a version; one that cannot take them is replaced.

        Args:
            only: names of workers; none: all that have started.
        Raises:
            WeightsLostError: the weights died with the learner that held them. No engine may play before another push.
            RolloutError: no engine took them.
        """
        self._version = version
        asked = [place for place in self._places if place.where and (not only or place.name in only)]
        calls = {place.name: place.actor.load_weights.remote(buckets, version) for place in asked}
        deadline, lost = time.monotonic() + timeout_s, ""
        for place in asked:
            place.version = None
            try:
                self._answer_by(calls[place.name], deadline)
                place.version = version
            except RayTaskError as error:
                if isinstance(error.cause, WeightsLostError):
                    lost = str(error.cause)
                else:
                    self._lose(place, "push_interrupted", _cause(error))
            except (RayError, TimeoutError) as error:
                self._lose(place, "push_interrupted", first_line(error))
        if lost:
            raise WeightsLostError(lost)

    def checksums(self, names: list[str], *, timeout_s: float, only: Sequence[str] = ()) -> dict[str, dict[str, str]]:
        """Checksums of parameters, per worker that holds the current weights."""
        asked = [place for place in self._ready if not only or place.name in only]
        calls = [(place, place.actor.checksums.remote(names)) for place in asked]
        deadline, held = time.monotonic() + timeout_s, {}
        for place, call in calls:
            try:
                held[place.name] = self._answer_by(call, deadline)
            except RayTaskError as error:
                raise RolloutError(f"could not read weights back: {_cause(error)}") from error
            except (RayError, TimeoutError) as error:
                self._lose(place, "push_interrupted", first_line(error))
        return held

    def stats(self) -> dict[str, float]:
        """Engine counters summed over workers, memory of the largest; one that has grown too much is replaced."""
        asked = [place for place in self._places if place.where]
        calls = [(place, place.actor.stats.remote()) for place in asked]
        deadline, told = time.monotonic() + COLLECT_S, []
        for place, call in calls:
            try:
                stats = self._answer_by(call, deadline)
            except (RayError, TimeoutError) as error:
                self._lose(place, "worker_died", first_line(error))
                continue
            place.memory.saw(stats["memory_mib"])
            told.append((stats, place.memory.slope_mib))
            if place.memory.is_exceeded:
                self._lose(place, "recycled", f"grew by {place.memory.growth_mib:.0f} MiB (rollout.memory_growth_mib)")
        summed = {f"engine/{name}": sum(s[name] for s, _ in told) for name in (told[0][0] if told else ())}
        summed.pop("engine/memory_mib", None)
        return summed | {
            "memory/rollout": max((stats["memory_mib"] for stats, _ in told), default=0.0),
            "memory/rollout_slope": max((slope for _, slope in told), default=0.0),
        }

    def attend(self) -> None:
        """Look after the workers while others are at work, without waiting: who has died, who has started.

        Raises:
            RolloutError: a place has lost too many workers in a row.
        """
        for place in self._places:
            if place.where is None:
                self._see_birth(place)
            else:
                self._feel_pulse(place, {})

    def take_faults(self) -> list[Fault]:
        """What broke and was mended since the last call of this method."""
        faults, self._faults = self._faults, []
        return faults

    @property
    def _ready(self) -> list[Place]:
        return [place for place in self._places if place.where and place.version == self._version]

    def _play(
        self, jobs: list[Job], step: int, greedily: bool, in_flight: int, patience_is_of_all: bool = False
    ) -> Iterator[list[tuple[int, TrajectoryGroup]]]:
        waiting, held = deque(jobs), {}
        left_s, before = self._timeout_s, time.monotonic()
        try:
            while waiting or held:
                if self.newcomers:
                    self._supply()
                self._hand_out(waiting, held, step, greedily, in_flight)
                finished, failure = self._collect(waiting, held)
                if finished:
                    yield finished
                if failure is not None:
                    raise failure
                self._look_after(waiting, held)
                now = time.monotonic()
                left_s = self._timeout_s if finished and not patience_is_of_all else left_s
                left_s -= now - before if self._ready else 0.0  # while none is left, a start has its own deadline
                before = now
                if left_s < 0:
                    of = f"{len(waiting) + len(held)} tasks"
                    said = f"could not play {of}: no answer" if patience_is_of_all else f"none of {of} was finished"
                    raise RolloutError(f"{said} within {self._timeout_s:g} s (rollout.call_timeout_s)")
        finally:
            for reference, one in held.items():
                one.place.playing -= one.place.number == one.number
                ray.cancel(reference)

    def _hand_out(
        self, waiting: deque[Job], held: dict[ray.ObjectRef, Held], step: int, greedily: bool, in_flight: int
    ) -> None:
        """To whoever has least to do."""
        while waiting and (free := [place for place in self._ready if place.playing < in_flight]):
            place, job, call = min(free, key=lambda place: place.playing), waiting.popleft(), next(self._serial)
            if not place.playing:
                place.watch.rest()
            place.playing += 1
            said = {sibling: tuple(turns) for sibling, turns in job.said.items()}
            reference = place.actor.generate.remote(call, job.task, step, job.occurrence, greedily, said)
            held[reference] = Held(call, job, place, place.number)

    def _collect(
        self, waiting: deque[Job], held: dict[ray.ObjectRef, Held]
    ) -> tuple[list[tuple[int, TrajectoryGroup]], RolloutError | None]:
        """Groups that are finished; those that failed wait again, unless they have failed too often."""
        starting = [place.born for place in self._places if place.where is None]
        if not held and not starting:
            raise RolloutError("no worker holds the current weights")
        if not ray.wait([*held, *starting], timeout=GLANCE_S)[0] or not held:
            return [], None
        finished, failure = [], None
        for reference in ray.wait(list(held), num_returns=len(held), timeout=0)[0]:
            one = held.pop(reference)
            one.place.playing -= one.place.number == one.number
            try:
                finished.append((one.job.index, self._accepted(ray.get(reference, timeout=COLLECT_S), one)))
            except RayActorError as error:
                if one.place.number == one.number:
                    self._lose(one.place, "worker_died", first_line(error))
                failure = failure or self._try_again(waiting, one, first_line(error), is_loss=True)
            except (RayError, StaleWeightsError) as error:
                failure = failure or self._try_again(waiting, one, _cause(error), is_loss=False)
        return finished, failure

    def _accepted(self, group: TrajectoryGroup, one: Held) -> TrajectoryGroup:
        """The group, if it was sampled with the weights that were pushed."""
        one.place.losses = 0
        versions = {turn.completion.policy_version for t in group.trajectories_G for turn in t.turns}
        if self._version is not None and versions - {self._version}:
            raise StaleWeightsError(f"{one.place.name} sampled with weights {sorted(versions)}, not {self._version}")
        return group

    def _try_again(self, waiting: deque[Job], one: Held, cause: str, *, is_loss: bool) -> RolloutError | None:
        job = one.job
        job.losses, job.failures = job.losses + is_loss, job.failures + (not is_loss)
        waiting.appendleft(job)
        if job.losses >= LOSSES:
            return RolloutError(f"could not play task {job.task.task_id}: {LOSSES} workers were lost over it: {cause}")
        return RolloutError(f"could not play task {job.task.task_id}: {cause}") if job.failures >= FAILURES else None

    def _look_after(self, waiting: deque[Job], held: dict[ray.ObjectRef, Held]) -> None:
        """Everybody's pulse; the groups of those who are lost wait again, with what their siblings have said."""
        calls = {one.call: one.job for one in held.values()}
        for place in self._places:
            if place.where is None:
                self._see_birth(place)
                continue
            self._feel_pulse(place, calls)
            if not place.playing:
                place.watch.rest()
            elif place.watch.is_stalled:
                log.error("%s: no progress for %g s:\n%s", place.name, self._stall_timeout_s, stacks_of(place.where))
                self._lose(place, "worker_hung", f"no progress for {self._stall_timeout_s:g} s; stacks are in the log")
        for reference in [ref for ref, one in held.items() if one.place.number != one.number]:
            one = held.pop(reference)
            if failure := self._try_again(waiting, one, one.place.lost.cause if one.place.lost else "", is_loss=True):
                raise failure
        self._check()

    def _feel_pulse(self, place: Place, calls: Mapping[int, Job]) -> None:
        if place.pulse is None:
            if time.monotonic() - place.felt >= GLANCE_S:
                place.pulse, place.felt = place.actor.pulse.remote(), time.monotonic()
            return
        if not ray.wait([place.pulse], timeout=0)[0]:
            return
        reference, place.pulse = place.pulse, None
        try:
            pulse: Pulse = ray.get(reference, timeout=COLLECT_S)
        except RayError as error:
            self._lose(place, "worker_died", _cause(error))
            return
        place.watch.saw(pulse.progress)
        for call, turns in pulse.news.items():
            if call in calls:
                for sibling, completion in turns:
                    calls[call].said.setdefault(sibling, []).append(completion)
        if pulse.failure:
            self._lose(place, "engine_died", pulse.failure)

    def _see_birth(self, place: Place) -> None:
        late = time.monotonic() - place.since > self._start_timeout_s
        if not ray.wait([place.born], timeout=0)[0]:
            if late:
                self._lose(place, "worker_hung", f"did not start within {self._start_timeout_s:.0f} s")
            return
        try:
            place.where = ray.get(place.born, timeout=COLLECT_S)
        except RayError as error:
            self._lose(place, "worker_died", f"while starting: {_cause(error)}")
            return
        if self._version is None:
            self._record_return(place)

    def _lose(self, place: Place, kind: str, cause: str) -> None:
        """Give a worker up and start another in its place.

        Raises:
            RolloutError: too many in a row.
        """
        log.warning("%s is replaced (%s): %s", place.name, kind.replace("_", " "), cause)
        ray.kill(place.actor, no_restart=True)
        place.losses += kind != "recycled"
        if place.losses >= LOSSES:
            raise RolloutError(f"{place.name}: {place.losses} workers in a row were lost; the last: {cause}")
        action = f"replaced; {place.playing} groups went on from their ledgers" if place.playing else "replaced"
        lost = place.lost or Fault(kind, place.name, cause, action, time.time(), 0.0)
        fresh = self._open(self._places.index(place), place.number + 1)
        place.actor, place.born, place.watch, place.memory = fresh.actor, fresh.born, fresh.watch, fresh.memory
        place.number, place.since, place.where, place.version = fresh.number, fresh.since, None, None
        place.pulse, place.playing, place.lost = None, 0, lost

    def _record_return(self, place: Place) -> None:
        if place.lost is not None:
            lost, place.lost = place.lost, None
            seconds = time.time() - lost.detected_s
            log.warning("%s is back after %.1f s", place.name, seconds)
            self._faults.append(Fault(lost.kind, lost.worker, lost.cause, lost.action, lost.detected_s, seconds))

    def confirm(self, names: Sequence[str]) -> None:
        """These workers hold the current weights, as their checksums say: they are back."""
        for place in self._places:
            if place.name in names:
                self._record_return(place)

    def _open(self, index: int, number: int = 0) -> Place:
        options = dict(self._options(index))
        name = options["name"]
        if number:  # Ray frees a killed actor's name late, so its successor takes another
            options["name"] = f"{name}#{number}"
        actor = ray.remote(RolloutWorker).options(**options, max_concurrency=1024).remote(self._make_player)
        watch, memory = ProgressWatch(self._stall_timeout_s), GrowthGuard(self._memory_growth_mib)
        return Place(name, actor, actor.whereabouts.remote(), watch, memory, number)

    def _answer_by(self, call: ray.ObjectRef, deadline: float) -> Any:
        """One call's answer; the others are looked after meanwhile."""
        while not ray.wait([call], timeout=GLANCE_S)[0]:
            if time.monotonic() > deadline:
                raise TimeoutError("no answer within the deadline")
        return ray.get(call, timeout=COLLECT_S)

    def _answer(self, call: ray.ObjectRef, doing: str) -> Any:
        try:
            return ray.get(call, timeout=COLLECT_S)
        except RayTaskError as error:
            raise RolloutError(f"could not {doing}: {_cause(error)}") from error
        except RayError as error:
            raise RolloutError(f"could not {doing}: a worker died: {first_line(error)}") from error


class StaleWeightsError(RuntimeError):
    """A group was sampled with other weights than those that were pushed."""


def _jobs(tasks: Sequence[VideoTask], attempt: int = 0) -> list[Job]:
    numbers = occurrences([task.task_id for task in tasks], attempt)
    return [Job(index, task, number) for index, (task, number) in enumerate(zip(tasks, numbers, strict=True))]


def _ledgers(group: TrajectoryGroup) -> list[tuple[tuple[int, ...], list[str | None]]]:
    """What tells whether two groups are the same: tokens and frames of every sibling."""
    opening = group.opening_frames.digest if group.opening_frames else None
    return [
        (trajectory_tokens(t), [opening, *(turn.frames.digest if turn.frames else None for turn in t.turns)])
        for t in group.trajectories_G
    ]


def _cause(error: Exception) -> str:
    if isinstance(error, RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}"
    return first_line(error)
