"""Profiles of the engines, begun and written for all of them together."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from actors.rollout_group import RolloutWorkerGroup
from actors.worker.waiting import as_completed, cause_of
from actors.worker_slot import WorkerHandle, WorkerSlot

log = logging.getLogger(__name__)

WRITING_S = 300.0  # for a profile to be written: minutes of a large engine are hundreds of MB


class EngineProfiles:
    """What every engine computes between two moments; one that is lost meanwhile has no profile."""

    def __init__(self, workers: RolloutWorkerGroup) -> None:
        self._workers = workers
        self._begun: dict[str, WorkerHandle] = {}  # by slot

    def begin_profiles(self) -> None:
        """Begin to record."""
        calls = {slot.worker.actor.begin_profile.remote(): slot for slot in self._workers.slots if slot.worker.location}
        self._begun = {slot.name: slot.worker for slot, _ in _answers(calls)}

    def write_profiles(self, folder: Path) -> list[str]:
        """Write what has been recorded; returns the names of the files in `folder`."""
        calls = {}
        for slot in self._workers.slots:
            if self._begun.get(slot.name) is slot.worker:
                path = folder / f"{slot.name.replace('/', '_')}.json.gz"
                calls[slot.worker.actor.write_profile.remote(str(path))] = slot
        self._begun = {}
        return sorted(name for _, names in _answers(calls) for name in names)


def _answers(calls: Mapping[ray.ObjectRef, WorkerSlot]) -> list[tuple[WorkerSlot, Any]]:
    found = []
    for slot, result in as_completed(calls, WRITING_S):
        try:
            found.append((slot, result()))
        except (RayError, TimeoutError) as error:
            log.warning("%s has no profile of this step: %s", slot.name, cause_of(error))
    return found
