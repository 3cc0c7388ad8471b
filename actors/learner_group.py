"""Driver's end of the learner ranks: one call goes to all of them and waits for all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from actors.delivery import Restore, deal, deliver, tokens_to_learn, undeal
from actors.learner import ABORTING, WRITING, LearnerWorker
from actors.pending_write import LearnerError, PendingWrite
from actors.weight_buckets import WeightBucket
from actors.worker.label import label
from actors.worker.process import WorkerProcess
from actors.worker.waiting import POLL_S, do_nothing, gather
from rl.algorithm.batch import assign_ranks, gather_ranks
from rl.group_summary import RemoteGroup
from rl.tracking.records import leading_groups
from rl.trajectory import LearnerUpdate, ScoredGroup, TrainingSample
from rl.weight_transfer.description import WeightTensor
from rl.weight_transfer.meeting import MeetingPoint

log = logging.getLogger(__name__)
WRITING_GRACE_S = 30.0  # for a checkpoint being written, before its ranks are killed


class LearnerGroup:
    """Driver's end of the learner ranks: one call goes to all of them and waits for all."""

    def __init__(
        self,
        make_learner: Callable[..., Any],
        world_size: int,
        options: Callable[[int], Mapping[str, Any]],
        *,
        start_timeout_s: float,
        timeout_s: float,
        poll: Callable[[], None] = do_nothing,
        poll_every_s: float = POLL_S,
        restore: Restore | None = None,
        sequence_parallel: int = 1,
        recorded_trajectories: int = 0,
    ) -> None:
        """
        Args:
            sequence_parallel: ranks in a row that are given the same samples.
            poll: called every `poll_every_s` while the driver waits for the ranks: other workers go on meanwhile.
            restore: makes scored groups again that were lost on their way, whole or in part.
            recorded_trajectories: of how many, from the first group, `update` gives log-probs.
        """
        self._recorded_trajectories = recorded_trajectories
        self._timeout_s, self._restore, self._same = start_timeout_s, restore, sequence_parallel
        self._poll, self._poll_every_s = poll, poll_every_s
        remote = ray.remote(concurrency_groups={WRITING: 1, ABORTING: 1})(LearnerWorker)
        named = [dict(options(rank)) for rank in range(world_size)]
        self.ranks = [remote.options(**given).remote(rank) for rank, given in enumerate(named)]
        self.processes = [
            WorkerProcess(given.get("name", f"learner/{rank}"), actor.location.remote())
            for rank, (given, actor) in enumerate(zip(named, self.ranks, strict=True))
        ]
        self._shown: list[list[int]] = []  # of the groups received, by rank, those whose log-probs are recorded
        self._writing: PendingWrite | None = None
        self.has_moved = False  # the ranks may hold other weights than they last exported
        try:
            self._start(make_learner)
        except LearnerError:
            self.stop()
            raise
        self._timeout_s = timeout_s

    def receive(self, scored: Sequence[ScoredGroup[RemoteGroup]]) -> list[ScoredGroup[RemoteGroup]]:
        """Hand out the scored groups of a step; whole groups go to ranks, balanced by tokens.

        Returns:
            All as they arrived: one that was lost on its way may have been sampled again.
        Raises:
            LearnerError: a rank died, failed or did not answer, or a group cannot be had: the ranks must be replaced.
        """
        assignment = assign_ranks([tokens_to_learn(one) for one in scored], len(self.ranks) // self._same)
        every = [mine for mine in assignment for _ in range(self._same)]
        arrived = deliver(scored, every, self._hand_out, self._restore)
        recorded = leading_groups([one.group for one in arrived], self._recorded_trajectories)
        self._shown = [[index for index in mine if index < recorded] for mine in assignment]
        return arrived

    def update(self, *, step: int, version: int) -> LearnerUpdate:
        """Learn from the groups received.

        Args:
            version: of the weights that the ranks hold.
        Raises:
            LearnerError: as `receive`.
        """
        told = [mine for mine in self._shown for _ in range(self._same)]
        self.has_moved = True
        calls = [
            rank.update.options(name=label(process.name, step)).remote(step, version, len(mine))
            for rank, process, mine in zip(self.ranks, self.processes, told, strict=True)
        ]
        updates = self._wait(calls, "update the policy")
        self.has_moved = updates[0].steps_taken > 0
        logprobs_PG = gather_ranks(self._shown, [update.logprobs_PG for update in updates[:: self._same]])
        first, optimizers = updates[0], " ".join(update.optimizer for update in updates if update.optimizer)
        spans = tuple(span for update in updates for span in update.spans)
        return LearnerUpdate(first.metrics, logprobs_PG, first.steps_taken, optimizers, spans)

    def _hand_out(self, parts: Sequence[Sequence[ScoredGroup[RemoteGroup]]]) -> list[list[int]]:
        """Send every rank its groups; the indices of those that each finds lost."""
        calls = [
            rank.receive.remote([one.group.references for one in part], [one.rewards_G for one in part])
            for rank, part in zip(self.ranks, parts, strict=True)
        ]
        return self._wait(calls, "hand out the trajectories")

    def supervise(self, samples: Sequence[TrainingSample]) -> dict[str, float]:
        """One supervised step, samples dealt to ranks in turn."""
        calls = [rank.supervise.remote(mine) for rank, mine in zip(self.ranks, self._dealt(samples), strict=True)]
        return self._wait(calls, "take a supervised step")[0]

    def losses(self, samples: Sequence[TrainingSample]) -> list[tuple[float, int]]:
        """Of each sample the summed negative log-prob of its learned tokens, in nat, and how many they are."""
        calls = [rank.losses.remote(mine) for rank, mine in zip(self.ranks, self._dealt(samples), strict=True)]
        return undeal(self._wait(calls, "evaluate")[:: self._same])

    def optimizer_digest(self) -> str:
        """Of the master weights and AdamW's state of all ranks, in order."""
        return " ".join(self._wait([rank.optimizer_digest.remote() for rank in self.ranks], "compare what they hold"))

    def _dealt(self, samples: Sequence[TrainingSample]) -> list[list[TrainingSample]]:
        return deal(samples, len(self.ranks), same=self._same)

    def export(self, bucket_bytes: int, *, trainable_only: bool) -> list[WeightBucket]:
        """The current weights in the object store; every rank has put a share of them there."""
        calls = [rank.export.remote(bucket_bytes, trainable_only) for rank in self.ranks]
        shares = self._wait(calls, "export the weights")
        self.has_moved = False
        return [bucket for share in shares for bucket in share]

    def offload(self, *, states: bool) -> None:
        """Leave the GPUs to the engines.

        Args:
            states: what a rank needs to learn goes to main memory; else it stays, as the weights do.
        """
        self._wait([rank.offload.remote(states) for rank in self.ranks], "leave the GPUs")

    def reload(self) -> None:
        """Take the GPUs back."""
        self._wait([rank.reload.remote() for rank in self.ranks], "take the GPUs back")

    def described_weights(self, bucket_bytes: int, *, trainable_only: bool) -> list[tuple[WeightTensor, ...]]:
        """What `send_weights` sends."""
        asked = self.ranks[0].described_weights.remote(bucket_bytes, trainable_only)
        return self._wait([asked], "describe the weights")[0]

    def listen(self, ranks: Sequence[int]) -> dict[int, tuple[str, int]]:
        """Where engines will meet these ranks."""
        return {rank: self._wait([self.ranks[rank].listen.remote()], "listen", first=rank)[0] for rank in ranks}

    def open_links(self, points: Mapping[int, MeetingPoint]) -> dict[int, str]:
        """Have ranks meet the engines that come to these points; returns why they did not meet, or nothing, by rank."""
        calls = {rank: self.ranks[rank].open_link.remote(point) for rank, point in points.items()}
        return {rank: self._wait([call], "meet the engines", first=rank)[0] for rank, call in calls.items()}

    def send_weights(
        self, bucket_bytes: int, *, trainable_only: bool, check: Callable[[], None]
    ) -> dict[int, dict[str, str] | str]:
        """Send the current weights over the ranks' links.

        Args:
            check: called about once a second while they send; must not block.
        Returns:
            Checksums by name, or why they were not sent, by rank that has a link.
        """
        calls = [rank.send_weights.remote(bucket_bytes, trainable_only) for rank in self.ranks]
        outcomes = enumerate(self._wait(calls, "send the weights", check=check))
        self.has_moved = False
        return {rank: outcome for rank, outcome in outcomes if outcome is not None}

    def abort_links(self) -> None:
        """Tear down the ranks' links, also while they send."""
        for rank in self.ranks:
            rank.abort_link.options(concurrency_group=ABORTING).remote()

    def save(self, folder: Path) -> PendingWrite:
        """Capture the learners' part of a checkpoint; it is written into `folder` in the background."""
        self._wait([rank.capture.remote(str(folder)) for rank in self.ranks], "copy the state for a checkpoint")
        calls = [rank.write.options(concurrency_group=WRITING).remote(str(folder)) for rank in self.ranks]
        self._writing = PendingWrite(calls, self.processes)
        return self._writing

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint."""
        self._wait([rank.load.remote(str(folder)) for rank in self.ranks], f"load {folder}")

    def export_policy(self, folder: Path) -> None:
        """Write the current policy as a Hugging Face folder."""
        self._wait([rank.export_policy.remote(str(folder)) for rank in self.ranks], "export the policy")

    def memory_mib(self) -> float:
        """Memory of the largest rank."""
        return max(self._wait([rank.memory_mib.remote() for rank in self.ranks], "report"))

    def stop(self) -> None:
        """Kill the ranks; a learner group cannot be initialised twice in one process.

        A checkpoint that is being written is written, within a grace.
        """
        if self._writing is not None:
            self._writing.wait(WRITING_GRACE_S)
        for rank in self.ranks:
            ray.kill(rank, no_restart=True)

    def _start(self, make_learner: Callable[..., Any]) -> None:
        self._wait([process.started for process in self.processes], "start the learner ranks")
        log.debug("learner ranks: %s", [process.location for process in self.processes])  # known before one fails
        address = self._wait([self.ranks[0].address.remote()], "start a learner rank")[0]
        calls = [rank.start.remote(make_learner, len(self.ranks), address) for rank in self.ranks]
        self._wait(calls, "bring the learner ranks together")

    def _wait(
        self, calls: list[ray.ObjectRef], doing: str, *, first: int = 0, check: Callable[[], None] = do_nothing
    ) -> list[Any]:
        """Answers of the ranks from `first` on; `check` is called as often as `poll`."""
        return gather(
            calls,
            timeout_s=self._timeout_s,
            doing=doing,
            failure=LearnerError,
            processes=self.processes[first : first + len(calls)],
            poll=lambda: (check(), self._poll()),
            poll_every_s=self._poll_every_s,
        )
