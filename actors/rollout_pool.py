"""Groups of a step, played by the crew: handed out, collected, and gone on with when a worker is lost.

What siblings have said is known here turn by turn (the token history). When their worker is lost,
they go on elsewhere from there, with the seeds they would have had. Only what a call of this driver's returns is ever
used, so a worker that lives on after it was given up changes nothing.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import ray
from ray.exceptions import RayError, RayTaskError

from actors.frames import blocks_of, exchange
from actors.rollout import EngineGoneError
from actors.rollout_group import LOSSES, Hear, Place, RolloutError, RolloutWorkerGroup, unheard
from actors.waiting import COLLECT_S, GLANCE_S, WORKER_IS_GONE, cause_of, nothing
from envs.rollout import occurrences
from rl.trajectory import Completion, Fault, TrajectoryGroup, VideoTask

FAILURES = 2  # times a group may fail in a worker that lives
DECODINGS = 3  # times a video is asked for frames that were lost


class StaleWeightsError(RuntimeError):
    """A group was sampled with other weights than those that were pushed."""


@dataclass(slots=True)
class Job:
    """A group to play, and what its siblings have said so far."""

    index: int  # of its task
    task: VideoTask
    occurrence: int
    said: dict[int, list[Completion | None]] = field(default_factory=dict)  # as in a TokenHistory
    losses: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """A job in the hands of a worker."""

    call: int
    job: Job
    place: Place
    number: int  # the worker's

    @property
    def is_lost(self) -> bool:
        """Its worker was replaced."""
        return self.place.number != self.number


@dataclass(frozen=True, slots=True)
class How:
    """How groups are played."""

    step: int
    greedily: bool
    in_flight: int  # groups at a time, per worker
    together: bool  # the deadline is of all together; else of the time in which none is finished


class RolloutPool:
    """Plays tasks with whatever workers there are. Every task comes back once, whoever is lost meanwhile."""

    def __init__(self, crew: RolloutWorkerGroup, *, timeout_s: float, check: Callable[[], None] = nothing) -> None:
        """
        Args:
            timeout_s: of a whole `generate`; in `play`, of the time in which no group is finished.
            check: called about once a second while waiting; what it raises ends the wait.
        """
        self.crew = crew
        self._timeout_s, self._check = timeout_s, check
        self._serial = itertools.count()

    def generate(
        self, tasks: Sequence[VideoTask], *, step: int, attempt: int = 0, greedily: bool = False
    ) -> list[TrajectoryGroup]:
        """A group per task, in order: sampled siblings, or one greedy trajectory.

        Args:
            attempt: 1, 2, ... for the replacements of zero-variance groups: with step and task it determines the seeds.
        Raises:
            RolloutError: a task cannot be played, or not all were within the deadline.
        """
        return self._all(_jobs(tasks, attempt), step, greedily)

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
        yield from self._play(_jobs(tasks), How(step, greedily, in_flight, together=False))

    def restore(self, groups: Sequence[TrajectoryGroup]) -> list[TrajectoryGroup]:
        """The same groups with their pixels decoded anew: those in the object store died with their worker.

        Everything else stays as it was sampled: a video that could not be read then, and can be now, changes nothing.

        Raises:
            RolloutError: a video no longer gives the frames it gave, as often as it is asked.
        """
        detected_s = time.time()
        wanted, found = [set(blocks_of([group])) for group in groups], [{} for _ in groups]
        for _ in range(DECODINGS):
            missing = [index for index, digests in enumerate(wanted) if digests - found[index].keys()]
            for index, new in zip(missing, self._replayed([groups[index] for index in missing]), strict=True):
                found[index] |= blocks_of([new])
        for group, digests, blocks in zip(groups, wanted, found, strict=True):
            if digests - blocks.keys():
                raise RolloutError(
                    f"{group.task.video_path}: the frames of task {group.task.task_id} were lost with their worker, "
                    f"and in {DECODINGS} attempts the video did not give the same again"
                )
        seconds = time.time() - detected_s
        self.crew.record(
            Fault("frames_lost", "rollout", f"pixels of {len(groups)} groups", "decoded anew", detected_s, seconds)
        )
        return [exchange(group, blocks) for group, blocks in zip(groups, found, strict=True)]

    def _replayed(self, groups: Sequence[TrajectoryGroup]) -> list[TrajectoryGroup]:
        """The groups played again from what was said; nothing is sampled."""
        jobs = _jobs([group.task for group in groups])
        for job, group in zip(jobs, groups, strict=True):
            job.said = {i: [*(turn.completion for turn in t.turns), None] for i, t in enumerate(group.trajectories_G)}
        return self._all(jobs, step=0, greedily=False)

    def _all(self, jobs: Sequence[Job], step: int, greedily: bool) -> list[TrajectoryGroup]:
        played: dict[int, TrajectoryGroup] = {}
        for finished in self._play(jobs, How(step, greedily, in_flight=len(jobs), together=True)):
            played |= dict(finished)
        return [played[index] for index in range(len(jobs))]

    def _play(self, jobs: Sequence[Job], how: How) -> Iterator[list[tuple[int, TrajectoryGroup]]]:
        waiting, held = deque(jobs), {}
        left_s = self._timeout_s
        self.crew.heard_by(_note_down(held))
        try:
            while waiting or held:
                self._check()
                self.crew.supply_newcomers()
                self._hand_out(waiting, held, how)
                began = time.monotonic()
                finished, failure = self._collect(waiting, held)
                waited_s = time.monotonic() - began
                if finished:
                    yield finished
                if failure is not None:
                    raise failure
                self._look_after(waiting, held)
                left_s = self._timeout_s if finished and not how.together else left_s
                left_s -= waited_s if self.crew.ready else 0.0  # a start has a deadline of its own
                if left_s < 0:
                    raise self._too_late(len(waiting) + len(held), how)
        finally:
            self.crew.heard_by(unheard)
            for reference, one in held.items():
                one.place.playing -= not one.is_lost
                ray.cancel(reference)

    def _hand_out(self, waiting: deque[Job], held: dict[ray.ObjectRef, Held], how: How) -> None:
        """To whoever has least to do, among those to a replacement that has not shown yet what it can."""
        while waiting and (free := [place for place in self.crew.ready if place.playing < how.in_flight]):
            place, job, call = min(free, key=_burden), waiting.popleft(), next(self._serial)
            if not place.playing:
                place.watch.rest()
            place.playing += 1
            said = {sibling: tuple(turns) for sibling, turns in job.said.items()}
            sent = place.actor.generate.remote(call, job.task, how.step, job.occurrence, how.greedily, said)
            held[sent] = Held(call, job, place, place.number)

    def _collect(
        self, waiting: deque[Job], held: dict[ray.ObjectRef, Held]
    ) -> tuple[list[tuple[int, TrajectoryGroup]], RolloutError | None]:
        """Groups that are finished; those that failed wait again, unless they have failed too often."""
        starting = [place.born for place in self.crew.places if place.where is None]
        if not held and not starting:
            raise RolloutError("no worker holds the current weights")
        if not ray.wait([*held, *starting], timeout=GLANCE_S)[0] or not held:
            return [], None
        finished, failure = [], None
        for reference in ray.wait(list(held), num_returns=len(held), timeout=0)[0]:
            one = held.pop(reference)
            one.place.playing -= not one.is_lost
            try:
                finished.append((one.job.index, self._accepted(ray.get(reference, timeout=COLLECT_S), one)))
            except StaleWeightsError as error:
                one.job.said.clear()
                failure = failure or _try_again(waiting, one, cause_of(error), is_loss=False)
            except RayError as error:
                loss = _loss(error)
                if loss and not one.is_lost:
                    one.place.playing += 1  # as it was when it died, for the record
                    self.crew.lose(one.place, loss, cause_of(error))
                failure = failure or _try_again(waiting, one, cause_of(error), is_loss=bool(loss))
        return finished, failure

    def _accepted(self, group: TrajectoryGroup, one: Held) -> TrajectoryGroup:
        """The group, if it was sampled with the weights that were pushed."""
        pushed = self.crew.version
        versions = {turn.completion.policy_version for t in group.trajectories_G for turn in t.turns}
        if pushed is not None and versions - {pushed}:
            raise StaleWeightsError(f"{one.place.name} sampled with weights {sorted(versions)}, not {pushed}")
        one.place.losses = 0
        return group

    def _look_after(self, waiting: deque[Job], held: dict[ray.ObjectRef, Held]) -> None:
        """Everybody's pulse; the groups of those who are lost wait again, with what their siblings have said."""
        self.crew.attend()
        for reference in [reference for reference, one in held.items() if one.is_lost]:
            one = held.pop(reference)
            cause = one.place.lost.cause if one.place.lost else "its worker was lost"
            if failure := _try_again(waiting, one, cause, is_loss=True):
                raise failure

    def _too_late(self, left: int, how: How) -> RolloutError:
        said = f"could not play {left} tasks: no answer" if how.together else f"none of {left} tasks was finished"
        return RolloutError(f"{said} within {self._timeout_s:g} s (rollout.call_timeout_s)")


def _jobs(tasks: Sequence[VideoTask], attempt: int = 0) -> list[Job]:
    numbers = occurrences([task.task_id for task in tasks], attempt)
    return [Job(index, task, number) for index, (task, number) in enumerate(zip(tasks, numbers, strict=True))]


def _note_down(held: Mapping[ray.ObjectRef, Held]) -> Hear:
    """What is said goes into its job, turn after turn: one that came without those before it is not known."""

    def hear(call: int, sibling: int, turn: int, completion: Completion) -> None:
        for job in [one.job for one in held.values() if one.call == call]:
            said = job.said.setdefault(sibling, [])
            if turn == len(said):
                said.append(completion)

    return hear


def _burden(place: Place) -> tuple[int, int]:
    return place.playing, -place.losses


def _loss(error: RayError) -> str:
    """How a worker was lost, if that is why a call failed; else empty."""
    if isinstance(error, WORKER_IS_GONE):
        return "worker_died"
    return "engine_died" if isinstance(error, RayTaskError) and isinstance(error.cause, EngineGoneError) else ""


def _try_again(waiting: deque[Job], one: Held, cause: str, *, is_loss: bool) -> RolloutError | None:
    """The job waits again, first in line; an error if that has happened too often."""
    job, name = one.job, one.job.task.task_id
    job.losses, job.failures = job.losses + is_loss, job.failures + (not is_loss)
    waiting.appendleft(job)
    if job.losses >= LOSSES:
        return RolloutError(f"could not play task {name}: {LOSSES} workers were lost over it: {cause}")
    return RolloutError(f"could not play task {name}: {cause}") if job.failures >= FAILURES else None
