"""Profiles of engines and ranks, begun and written for all of them together; what cannot be written ends no run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from actors.learner_group import LearnerGroup
from actors.rollout_group import RolloutWorkerGroup
from actors.worker.waiting import as_completed, cause_of
from actors.worker_slot import WorkerHandle

log = logging.getLogger(__name__)

WRITING_S = 300.0  # for a profile to be written: minutes of a large engine are hundreds of MB


def answers(calls: Mapping[ray.ObjectRef, str]) -> dict[str, Any]:
    """What workers say that were asked to begin or to write a profile, by name; the log names those that could not.

    Args:
        calls: the name of the worker that each went to.
    """
    found = {}
    for name, result in as_completed(calls, WRITING_S):
        try:
            found[name] = result()
        except (RayError, TimeoutError) as error:
            log.warning("%s has no profile of this step: %s", name, cause_of(error))
    return found


class EngineProfiles:
    """What every engine computes between two moments; one that is lost meanwhile has no profile."""

    def __init__(self, workers: RolloutWorkerGroup) -> None:
        self._workers = workers
        self._begun: dict[str, WorkerHandle] = {}  # by slot

    def begin_profiles(self) -> None:
        """Begin to record."""
        ready = {slot.name: slot.worker for slot in self._workers.slots if slot.worker.location}
        begun = answers({worker.actor.begin_profile.remote(): name for name, worker in ready.items()})
        self._begun = {name: ready[name] for name in begun}

    def write_profiles(self, folder: Path) -> list[str]:
        """Write what has been recorded; returns the names of the files in `folder`."""
        calls = {
            slot.worker.actor.write_profile.remote(str(folder / f"{slot.name.replace('/', '_')}.json.gz")): slot.name
            for slot in self._workers.slots
            if self._begun.get(slot.name) is slot.worker
        }
        self._begun = {}
        return sorted(name for names in answers(calls).values() for name in names)


class RankProfiles:
    """What every learner rank computes between two moments."""

    def __init__(self, learners: LearnerGroup) -> None:
        self._learners = learners

    def begin_profiles(self) -> None:
        """Begin to record."""
        answers({rank.begin_profile.remote(): f"learner/{index}" for index, rank in enumerate(self._learners.ranks)})

    def write_profiles(self, folder: Path) -> list[str]:
        """Write what has been recorded; returns the names of the files in `folder`."""
        named = [(rank, f"learner_{index}") for index, rank in enumerate(self._learners.ranks)]
        calls = {rank.write_profile.remote(str(folder / f"{name}.json.gz")): name for rank, name in named}
        return sorted(answers(calls).values())
