"""The crew of rollout workers: a fixed number of places, each held by a worker that lives.

A worker that dies, hangs, or whose engine fails is given up, and another one starts in its place; it plays once it
holds the current weights, as its checksums say. What it was playing goes on elsewhere (actors.rollout_pool).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from actors.memory import GrowthGuard
from actors.placement import named
from actors.rollout import Condition, Pulse, RolloutWorker
from actors.rollout_runner import RolloutRunner
from actors.stall_detector import ProgressWatch, Whereabouts, stacks_of
from actors.waiting import COLLECT_S, GLANCE_S, cause_of, nothing
from actors.weight_buckets import WeightBucket, WeightsLostError
from rl.trajectory import Completion, Fault

log = logging.getLogger(__name__)

Hear = Callable[[int, int, int, Completion], None]  # call, sibling, number of the turn, what was said

AWAY_S = 2 * GLANCE_S  # between two looks at the workers; beyond it the driver was busy with something else
LOSSES = 4  # workers that a place may lose in a row, or a group in all, before something else must be wrong


class RolloutError(RuntimeError):
    """A task cannot be played, or no worker is left that could."""


def unheard(_call: int, _sibling: int, _turn: int, _completion: Completion) -> None:
    """Nobody plays."""


@dataclass(slots=True)
class Place:
    """A worker's place in the crew, and what the driver knows of who holds it. `number` tells successors apart."""

    name: str
    actor: Any
    born: ray.ObjectRef
    watch: ProgressWatch
    memory: GrowthGuard
    device_memory: GrowthGuard
    number: int = 0
    since: float = field(default_factory=time.monotonic)  # it was asked to start
    where: Whereabouts | None = None  # once it has started
    version: int | None = None  # of the weights it confirmed; None: those it found on disk
    pulse: ray.ObjectRef | None = None
    felt: float = 0.0  # when it was last asked for a pulse
    playing: int = 0  # groups
    losses: int = 0  # in a row
    lost: Fault | None = None  # why its predecessor is gone, until it has taken over


class RolloutWorkerGroup:
    """Driver's end of the workers."""

    def __init__(
        self,
        make_rollout_runner: Callable[[], RolloutRunner],
        num_workers: int,
        options: Callable[[int], Mapping[str, Any]],
        *,
        stall_timeout_s: float = 180.0,
        start_timeout_s: float = 600.0,
        memory_growth_mib: float = 0.0,
        device_memory_growth_mib: float = 0.0,
    ) -> None:
        """
        Args:
            options: of the actor in a place.
            stall_timeout_s: a worker with work that does not get on for so long hangs.
            memory_growth_mib: a worker that has grown by more is replaced between two steps; 0: never.
            device_memory_growth_mib: the same of its engine's memory on an accelerator.
        """
        self._make_rollout_runner, self._options = make_rollout_runner, options
        self._stall_timeout_s, self._start_timeout_s = stall_timeout_s, start_timeout_s
        self._growth_mib = memory_growth_mib, device_memory_growth_mib
        self._version: int | None = None  # of the weights that were pushed; None: none were
        self._faults: list[Fault] = []
        self._supply: Callable[[], None] = nothing
        self._hear: Hear = unheard
        self._attended = time.monotonic()
        self.places = [self._open(index) for index in range(num_workers)]

    def wait_ready(self, timeout_s: float, check: Callable[[], None] = nothing) -> None:
        """Return when every engine has loaded its policy.

        Raises:
            RolloutError: one did not, with its reason.
        """
        deadline = time.monotonic() + timeout_s
        while starting := [place for place in self.places if place.where is None]:
            ready, _ = ray.wait([place.born for place in starting], timeout=GLANCE_S)
            for place in starting:
                if place.born in ready:
                    place.where = self._born(place)
            check()
            if not ready and time.monotonic() > deadline:
                raise RolloutError(f"could not start: {starting[0].name} gave no answer within {timeout_s:.0f} s")

    @property
    def ready(self) -> list[Place]:
        """Those who have started and hold the weights that were pushed, or were never sent any."""
        return [place for place in self.places if place.where and place.version == self._version]

    @property
    def version(self) -> int | None:
        """Of the weights that were pushed; None: none were."""
        return self._version

    @property
    def newcomers(self) -> list[str]:
        """Names of those who have started and do not hold the weights that were pushed."""
        return [place.name for place in self.places if place.where and place.version != self._version]

    def supplied_by(self, supply: Callable[[], None]) -> None:
        """Who gives the current weights to newcomers."""
        self._supply = supply

    def supply_newcomers(self) -> None:
        """See that all who have started hold the current weights."""
        if self.newcomers:
            self._supply()

    def load_weights(
        self, buckets: Sequence[WeightBucket], version: int, *, timeout_s: float, only: Sequence[str] | None = None
    ) -> None:
        """Give engines the weights of a version; one that cannot take them is replaced.

        Args:
            only: names of workers; None: all that have started.
        Raises:
            WeightsLostError: the weights died with the learner that held them. No engine may play before another push.
        """
        self._version = version
        asked = [place for place in self.places if place.where and (only is None or place.name in only)]
        for place in asked:
            place.version = None
        calls, lost = {place.actor.load_weights.remote(list(buckets), version): place for place in asked}, None
        for place, answer in _as_they_come(calls, timeout_s):
            try:
                answer()
                place.version = version
            except RayTaskError as error:
                if isinstance(error.cause, WeightsLostError):
                    lost = error.cause
                else:
                    self.lose(place, "push_interrupted", cause_of(error))
            except (RayError, TimeoutError) as error:
                self.lose(place, "push_interrupted", cause_of(error))
        if lost is not None:
            raise lost

    def checksums(
        self, names: list[str], *, timeout_s: float, only: Sequence[str] | None = None
    ) -> dict[str, dict[str, str]]:
        """Checksums of parameters, by the name of each worker that was sent the current weights."""
        asked = [place for place in self.ready if only is None or place.name in only]
        calls, held = {place.actor.checksums.remote(names): place for place in asked}, {}
        for place, answer in _as_they_come(calls, timeout_s):
            try:
                held[place.name] = answer()
            except (RayError, TimeoutError) as error:
                self.lose(place, "push_interrupted", cause_of(error))
        return held

    def confirm(self, names: Sequence[str]) -> None:
        """These workers hold the current weights, as their checksums say: replacements among them have taken over."""
        for place in self.places:
            if place.name in names:
                self._record_return(place)

    def stats(self) -> dict[str, float]:
        """Engine counters summed over workers, memory of the largest; one that has grown too much is replaced."""
        calls = {place.actor.condition.remote(): place for place in self.places if place.where}
        told, slopes = [], []
        for place, answer in _as_they_come(calls, COLLECT_S):
            try:
                condition: Condition = answer()
            except (RayError, TimeoutError) as error:
                self.lose(place, "worker_died", cause_of(error))
                continue
            told.append(condition)
            self._faults += [replace(fault, worker=f"{place.name}/{fault.worker}") for fault in condition.faults]
            place.memory.saw(condition.memory_mib)
            place.device_memory.saw(condition.device_memory_mib)
            slopes.append(place.memory.slope_mib)
            self._recycle_if_grown(place)
        counters = told[0].counters if told else ()
        on_device_mib = max((condition.device_memory_mib for condition in told), default=0.0)
        return {
            **{f"engine/{name}": sum(condition.counters[name] for condition in told) for name in counters},
            "memory/rollout": max((condition.memory_mib for condition in told), default=0.0),
            "memory/rollout_slope": max(slopes, default=0.0),
            **({"memory/rollout_device": on_device_mib} if on_device_mib else {}),
        }

    def attend(self) -> None:
        """Look after the workers, without waiting: who has started, died, or does not get on with what he plays.

        Raises:
            RolloutError: a place has lost too many workers in a row.
        """
        away_s = time.monotonic() - self._attended - AWAY_S
        for place in self.places:
            if place.where is None:
                self._see_birth(place)
                continue
            if away_s > 0:  # nobody asked for a pulse meanwhile
                place.watch.excuse(away_s)
            self._feel_pulse(place)
            if not place.playing:
                place.watch.rest()
            elif place.watch.is_stalled:
                log.error("%s: no progress for %g s:\n%s", place.name, self._stall_timeout_s, stacks_of(place.where))
                self.lose(place, "worker_hung", f"no progress for {self._stall_timeout_s:g} s; stacks are in the log")
        self._attended = time.monotonic()

    def heard_by(self, hear: Hear) -> None:
        """Who is told of every turn that is said, whoever attends meanwhile."""
        self._hear = hear

    def lose(self, place: Place, kind: str, cause: str) -> None:
        """Give a worker up and start another in its place.

        Raises:
            RolloutError: too many in a row.
        """
        log.warning("%s is replaced (%s): %s", place.name, kind.replace("_", " "), cause)
        ray.kill(place.actor, no_restart=True)
        place.losses += kind != "recycled"
        if place.losses >= LOSSES:
            raise RolloutError(f"{place.name}: {place.losses} workers in a row were lost; the last: {cause}")
        if place.lost is not None:  # it was a replacement itself, and never took over
            self._close(place)
        action = f"replaced; {place.playing} groups went on from their token histories" if place.playing else "replaced"
        lost = Fault(kind, place.name, cause, action, time.time(), 0.0)
        fresh = self._open(self.places.index(place), place.number + 1)
        place.actor, place.born, place.watch = fresh.actor, fresh.born, fresh.watch
        place.memory, place.device_memory = fresh.memory, fresh.device_memory
        place.number, place.since, place.where, place.version = fresh.number, fresh.since, None, None
        place.pulse, place.playing, place.lost = None, 0, lost

    def record(self, fault: Fault) -> None:
        """Something broke and was mended."""
        self._faults.append(fault)

    def take_faults(self, *, unfinished: bool = False) -> list[Fault]:
        """What broke and was mended since the last call of this method.

        Args:
            unfinished: also what is being mended; for the end of a run.
        """
        if unfinished:
            for place in [place for place in self.places if place.lost]:
                self._close(place, "; not back when the run ended")
        faults, self._faults = self._faults, []
        return faults

    def _recycle_if_grown(self, place: Place) -> None:
        for guard, key in ((place.memory, "memory_growth_mib"), (place.device_memory, "device_memory_growth_mib")):
            if guard.is_exceeded:
                self.lose(place, "recycled", f"grew by {guard.growth_mib:.0f} MiB (rollout.{key})")
                return

    def _feel_pulse(self, place: Place) -> None:
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
            self.lose(place, "worker_died", cause_of(error))
            return
        place.watch.saw(pulse.progress)
        for call, turns in pulse.news.items():
            for sibling, turn, completion in turns:
                self._hear(call, sibling, turn, completion)
        if pulse.failure:
            self.lose(place, "engine_died", pulse.failure)

    def _see_birth(self, place: Place) -> None:
        if ray.wait([place.born], timeout=0)[0]:
            try:
                place.where = ray.get(place.born, timeout=COLLECT_S)
            except RayError as error:
                self.lose(place, "worker_died", f"while starting: {cause_of(error)}")
            else:
                if self._version is None:
                    self._record_return(place)
        elif time.monotonic() - place.since > self._start_timeout_s:
            self.lose(place, "worker_hung", f"did not start within {self._start_timeout_s:.0f} s")

    def _record_return(self, place: Place) -> None:
        if place.lost is not None:
            log.warning("%s is back after %.1f s", place.name, self._close(place))

    def _close(self, place: Place, how: str = "") -> float:
        """The loss of a place's predecessor is over, and goes on record; seconds it took."""
        seconds = time.time() - place.lost.detected_s
        self._faults.append(replace(place.lost, action=f"{place.lost.action}{how}", recovery_s=seconds))
        place.lost = None
        return seconds

    def _open(self, index: int, number: int = 0) -> Place:
        options = dict(self._options(index))
        name = options["name"]
        options["name"] = named(name, number)
        actor = ray.remote(RolloutWorker).options(**options, max_concurrency=1024).remote(self._make_rollout_runner)
        watch, guards = ProgressWatch(self._stall_timeout_s), map(GrowthGuard, self._growth_mib)
        return Place(name, actor, actor.whereabouts.remote(), watch, *guards, number)

    def _born(self, place: Place) -> Whereabouts:
        try:
            return ray.get(place.born, timeout=COLLECT_S)
        except RayError as error:
            raise RolloutError(f"could not start: a worker died: {cause_of(error)}") from error


def _as_they_come(calls: Mapping[ray.ObjectRef, Place], timeout_s: float) -> Iterator[tuple[Place, Callable[[], Any]]]:
    """Who has answered, and how to get the answer: a death is seen at once, whoever else keeps one waiting."""
    waiting, deadline = dict(calls), time.monotonic() + timeout_s
    while waiting:
        ready, _ = ray.wait(list(waiting), timeout=max(deadline - time.monotonic(), 0.0))
        for reference in ready:
            yield waiting.pop(reference), partial(ray.get, reference, timeout=COLLECT_S)
        if not ready:
            for place in waiting.values():
                yield place, _too_late
            return


def _too_late() -> None:
    raise TimeoutError("no answer within the deadline")
