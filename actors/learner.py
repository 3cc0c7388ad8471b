"""Learner workers: DeepSpeed ranks in Ray actors, driven as one group."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from actors.cluster.gpu_turn import gpu_turn
from actors.delivery import Restore, deliver, tokens_to_learn
from actors.frames import fetch_samples
from actors.groups import GroupLostError, fetch_whole_groups
from actors.learner_link import LearnerLink, Sent
from actors.pending_write import LearnerError, PendingWrite
from actors.profiles import answers
from actors.weight_buckets import WeightBucket, pack
from actors.worker.label import WorkerLabel, label
from actors.worker.memory import own_memory_mib
from actors.worker.ports import reserve_port
from actors.worker.process import ProcessLocation, WorkerProcess, own_location
from actors.worker.waiting import POLL_S, do_nothing, gather
from actors.worker.working_time import WorkingTime
from rl.algorithm.batch import assign_ranks, gather_ranks
from rl.checkpoint.snapshot import Snapshot
from rl.group_summary import RemoteGroup
from rl.tracking.records import leading_groups
from rl.trajectory import LearnerUpdate, Rewards, ScoredGroup, TrainingSample, WorkSpan, WrittenFile
from rl.weight_transfer.description import WeightTensor, in_buckets
from rl.weight_transfer.watch import MeetingPoint

log = logging.getLogger(__name__)
TURN_S = 900.0  # for an engine that is starting on the same GPU
WRITING = "writing"  # the thread of a rank's process in which checkpoints are written
ABORTING = "aborting"  # the thread that tears down a link on which the rank is sending
WRITING_GRACE_S = 30.0  # for a checkpoint being written, before its ranks are killed


class LearnerWorker:
    """One rank of the learner group. Every method is collective with the other ranks."""

    def __init__(self, rank: int) -> None:
        self._rank, self._world_size, self._label = rank, 1, WorkerLabel()
        self._learner: Any = None
        self._link = LearnerLink()
        self._working = WorkingTime()
        self._port: socket.socket | None = None
        self._received: list[ScoredGroup] = []
        self._captured: dict[str, Snapshot] = {}
        self._turn = ExitStack()  # on a GPU that it shares with engines

    def __repr__(self) -> str:
        return str(self._label)

    def location(self) -> ProcessLocation:
        """Of this process; before `start`, so that a rank that fails in it is known."""
        return own_location()

    def address(self) -> tuple[str, int]:
        """The rendezvous address: this node and a port that stays bound until `start` listens on it."""
        self._port = reserve_port()
        return ray.util.get_node_ip_address(), self._port.getsockname()[1]

    def start(self, make_learner: Callable[..., Any], world_size: int, address: tuple[str, int]) -> None:
        """Build the learner; returns when all ranks have met.

        Raises:
            LearnerError: something else listens on the port.
        """
        self._world_size = world_size
        host, port = address
        try:
            self._learner = make_learner(rank=self._rank, world_size=world_size, master_addr=host, master_port=port)
        except (RuntimeError, OSError) as error:
            if "address already in use" not in str(error).lower():
                raise
            raise LearnerError(f"no free port: {host}:{port} was taken before the ranks met; start again") from error
        finally:
            if self._port is not None:
                self._port.close()

    def receive(self, held: list[tuple[ray.ObjectRef, ray.ObjectRef]], rewards: list[Rewards]) -> list[int]:
        """Fetch this rank's groups and their pixels; returns the indices of those that are lost, whole or in part.

        A call of its own, before `update`: a rank without its pixels must not leave the others waiting in a collective.

        Args:
            held: references to each group and to its pixels.
            rewards: of each group's siblings.
        """
        self._received, lost = [], []
        try:
            groups = fetch_whole_groups(held)
            self._received = [ScoredGroup(*one) for one in zip(groups, rewards, strict=True)]
            return lost
        except GroupLostError:
            log.warning("groups, or their pixels, are lost; fetching group by group to find which")
        for index, (references, rewards_G) in enumerate(zip(held, rewards, strict=True)):
            try:
                self._received += [ScoredGroup(group, rewards_G) for group in fetch_whole_groups([references])]
            except GroupLostError:
                lost.append(index)
        return lost

    def update(self, step: int, version: int, recorded: int) -> LearnerUpdate:
        """Take the optimizer steps of one update on the groups received, from weights of this version.

        Args:
            recorded: of how many of them, from the first, log-probs are returned.
        """
        self._label.at(step)
        received, self._received = self._received, []
        with self._working:
            update = self._learner.learn(received, version)
        worked = [WorkSpan(f"learner/{self._rank}", "update", *interval) for interval in self._working.take()]
        return replace(update, logprobs_PG=update.logprobs_PG[:recorded], spans=tuple(worked))

    def supervise(self, samples: list[TrainingSample]) -> dict[str, float]:
        """One supervised step on this rank's samples."""
        return self._learner.supervise(fetch_samples(samples))

    def export(self, bucket_bytes: int, trainable_only: bool) -> list[WeightBucket]:
        """Pack this rank's share of the weights into buckets; every rank takes part in the gathering."""
        buckets = in_buckets(self._learner.described_weights(trainable_only=trainable_only), bucket_bytes)
        wanted = {tensor.name for bucket in buckets[self._rank :: self._world_size] for tensor in bucket}
        return pack(self._learner.named_weights(trainable_only=trainable_only, wanted=wanted), bucket_bytes)

    def offload(self) -> None:
        """Leave the GPU to the engines."""
        self._learner.offload()
        self._turn.close()

    def reload(self) -> None:
        """Take the GPU back: no engine can start on it until `offload`.

        Raises:
            TimeoutError: an engine that starts has kept it for `TURN_S`.
        """
        self._turn.enter_context(gpu_turn(ray.get_gpu_ids(), TURN_S))
        self._learner.reload()

    def described_weights(self, bucket_bytes: int, trainable_only: bool) -> list[tuple[WeightTensor, ...]]:
        """What `send_weights` sends."""
        return in_buckets(self._learner.described_weights(trainable_only=trainable_only), bucket_bytes)

    def listen(self) -> tuple[str, int]:
        """Where engines will meet this rank."""
        return self._link.listen()

    def open_link(self, point: MeetingPoint) -> str:
        """Meet engines; returns why they did not meet, or nothing."""
        return self._link.open(point, self._learner.device)

    def send_weights(self, bucket_bytes: int, trainable_only: bool) -> Sent:
        """Send the weights over this rank's link, if it has one; every rank takes part in the gathering."""
        return self._link.send(self._learner, bucket_bytes, trainable_only)

    def abort_link(self) -> None:
        """Give up what is being sent, on a thread of its own."""
        self._link.abort()

    def capture(self, folder: str) -> None:
        """Copy this rank's part of the checkpoint that will be written into `folder`; collective."""
        self._captured = {folder: self._learner.capture()}  # an older one that nobody wrote is dropped

    def write(self, folder: str) -> list[WrittenFile]:
        """Write the captured state into an existing folder, on the rank's writing thread."""
        return self._captured.pop(folder).write(Path(folder))

    def load(self, folder: str) -> None:
        """Go on from a checkpoint."""
        self._learner.load(Path(folder))

    def export_policy(self, folder: str) -> None:
        """Write the current policy as a Hugging Face folder; each rank writes its files."""
        self._learner.export_policy(Path(folder))

    def begin_profile(self) -> None:
        """Begin to record what this rank computes."""
        from rl.policy.profiler import Profiler  # torch, which the driver does without

        self._profiler = Profiler()

    def write_profile(self, path: str) -> str:
        """Write what has been recorded; returns the file's name."""
        self._profiler.write(Path(path))
        del self._profiler
        return Path(path).name

    def memory_mib(self) -> float:
        """Memory this process holds by itself."""
        return own_memory_mib()


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
        self._ranks = [remote.options(**given).remote(rank) for rank, given in enumerate(named)]
        self._processes = [
            WorkerProcess(given.get("name", f"learner/{rank}"), actor.location.remote())
            for rank, (given, actor) in enumerate(zip(named, self._ranks, strict=True))
        ]
        self._writing: PendingWrite | None = None
        self.has_moved = False  # the ranks may hold other weights than they last exported
        try:
            self._start(make_learner)
        except LearnerError:
            self.stop()
            raise
        self._timeout_s = timeout_s

    def update(self, scored: Sequence[ScoredGroup[RemoteGroup]], *, step: int, version: int) -> LearnerUpdate:
        """Learn from the scored groups of a step; whole groups go to ranks, balanced by tokens.

        Args:
            version: of the weights that the ranks hold.
        Raises:
            LearnerError: a rank died, failed or did not answer: the ranks must be replaced.
        """
        assignment = assign_ranks([tokens_to_learn(one) for one in scored], len(self._ranks) // self._same)
        scored = deliver(
            scored, [mine for mine in assignment for _ in range(self._same)], self._hand_out, self._restore
        )
        recorded = leading_groups([one.group for one in scored], self._recorded_trajectories)
        shown = [[index for index in mine if index < recorded] for mine in assignment]
        told = [mine for mine in shown for _ in range(self._same)]
        self.has_moved = True
        calls = [
            rank.update.options(name=label(process.name, step)).remote(step, version, len(mine))
            for rank, process, mine in zip(self._ranks, self._processes, told, strict=True)
        ]
        updates = self._wait(calls, "update the policy")
        self.has_moved = updates[0].steps_taken > 0
        logprobs_PG = gather_ranks(shown, [update.logprobs_PG for update in updates[:: self._same]])
        first, optimizers = updates[0], " ".join(update.optimizer for update in updates if update.optimizer)
        spans = tuple(span for update in updates for span in update.spans)
        return LearnerUpdate(first.metrics, logprobs_PG, first.steps_taken, optimizers, spans)

    def _hand_out(self, parts: Sequence[Sequence[ScoredGroup[RemoteGroup]]]) -> list[list[int]]:
        """Send every rank its groups; the indices of those that each finds lost."""
        calls = [
            rank.receive.remote([one.group.references for one in part], [one.rewards_G for one in part])
            for rank, part in zip(self._ranks, parts, strict=True)
        ]
        return self._wait(calls, "hand out the trajectories")

    def supervise(self, samples: Sequence[TrainingSample]) -> dict[str, float]:
        """One supervised step, samples dealt to ranks in turn."""
        parts = len(self._ranks) // self._same
        dealt = [list(samples[rank // self._same :: parts]) for rank in range(len(self._ranks))]
        calls = [rank.supervise.remote(mine) for rank, mine in zip(self._ranks, dealt, strict=True)]
        return self._wait(calls, "take a supervised step")[0]

    def export(self, bucket_bytes: int, *, trainable_only: bool) -> list[WeightBucket]:
        """The current weights in the object store; every rank has put a share of them there."""
        calls = [rank.export.remote(bucket_bytes, trainable_only) for rank in self._ranks]
        shares = self._wait(calls, "export the weights")
        self.has_moved = False
        return [bucket for share in shares for bucket in share]

    def offload(self) -> None:
        """Leave the GPUs to the engines: what a rank needs to learn goes to main memory, the weights stay."""
        self._wait([rank.offload.remote() for rank in self._ranks], "leave the GPUs")

    def reload(self) -> None:
        """Take the GPUs back."""
        self._wait([rank.reload.remote() for rank in self._ranks], "take the GPUs back")

    def described_weights(self, bucket_bytes: int, *, trainable_only: bool) -> list[tuple[WeightTensor, ...]]:
        """What `send_weights` sends."""
        asked = self._ranks[0].described_weights.remote(bucket_bytes, trainable_only)
        return self._wait([asked], "describe the weights")[0]

    def listen(self, ranks: Sequence[int]) -> dict[int, tuple[str, int]]:
        """Where engines will meet these ranks."""
        return {rank: self._wait([self._ranks[rank].listen.remote()], "listen", first=rank)[0] for rank in ranks}

    def open_links(self, points: Mapping[int, MeetingPoint]) -> dict[int, str]:
        """Have ranks meet the engines that come to these points; returns why they did not meet, or nothing, by rank."""
        calls = {rank: self._ranks[rank].open_link.remote(point) for rank, point in points.items()}
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
        calls = [rank.send_weights.remote(bucket_bytes, trainable_only) for rank in self._ranks]
        outcomes = enumerate(self._wait(calls, "send the weights", check=check))
        self.has_moved = False
        return {rank: outcome for rank, outcome in outcomes if outcome is not None}

    def abort_links(self) -> None:
        """Tear down the ranks' links, also while they send."""
        for rank in self._ranks:
            rank.abort_link.options(concurrency_group=ABORTING).remote()

    def save(self, folder: Path) -> PendingWrite:
        """Capture the learners' part of a checkpoint; it is written into `folder` in the background."""
        self._wait([rank.capture.remote(str(folder)) for rank in self._ranks], "copy the state for a checkpoint")
        in_writing = {"concurrency_group": WRITING}
        calls = [rank.write.options(**in_writing).remote(str(folder)) for rank in self._ranks]
        self._writing = PendingWrite(calls, self._processes)
        return self._writing

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint."""
        self._wait([rank.load.remote(str(folder)) for rank in self._ranks], f"load {folder}")

    def export_policy(self, folder: Path) -> None:
        """Write the current policy as a Hugging Face folder."""
        self._wait([rank.export_policy.remote(str(folder)) for rank in self._ranks], "export the policy")

    def begin_profiles(self) -> None:
        """Begin to record what every rank computes."""
        answers({rank.begin_profile.remote(): f"learner/{index}" for index, rank in enumerate(self._ranks)})

    def write_profiles(self, folder: Path) -> list[str]:
        """Write what has been recorded; returns the names of the files in `folder`."""
        named = [(rank, f"learner_{index}") for index, rank in enumerate(self._ranks)]
        calls = {rank.write_profile.remote(str(folder / f"{name}.json.gz")): name for rank, name in named}
        return sorted(answers(calls).values())

    def memory_mib(self) -> float:
        """Memory of the largest rank."""
        return max(self._wait([rank.memory_mib.remote() for rank in self._ranks], "report"))

    @property
    def processes(self) -> Sequence[WorkerProcess]:
        """Of the ranks, in order."""
        return self._processes

    def stop(self) -> None:
        """Kill the ranks; a learner group cannot be initialised twice in one process.

        A checkpoint that is being written is written, within a grace.
        """
        if self._writing is not None:
            self._writing.wait(WRITING_GRACE_S)
        for rank in self._ranks:
            ray.kill(rank, no_restart=True)

    def _start(self, make_learner: Callable[..., Any]) -> None:
        self._wait([process.started for process in self._processes], "start the learner ranks")
        log.debug("learner ranks: %s", [process.location for process in self._processes])  # known before one fails
        address = self._wait([self._ranks[0].address.remote()], "start a learner rank")[0]
        self._wait(
            [rank.start.remote(make_learner, len(self._ranks), address) for rank in self._ranks],
            "bring the learner ranks together",
        )

    def _wait(
        self, calls: list[ray.ObjectRef], doing: str, *, first: int = 0, check: Callable[[], None] = do_nothing
    ) -> list[Any]:
        """Answers of the ranks from `first` on; `check` is called as often as `poll`."""
        return gather(
            calls,
            timeout_s=self._timeout_s,
            doing=doing,
            failure=LearnerError,
            processes=self._processes[first : first + len(calls)],
            poll=lambda: (check(), self._poll()),
            poll_every_s=self._poll_every_s,
        )
