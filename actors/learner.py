"""Learner workers: DeepSpeed ranks in Ray actors, driven as one group (actors.learner_group)."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from actors.cluster.gpu_turn import gpu_turn
from actors.frames import fetch_samples
from actors.groups import fetch_groups_that_are_there
from actors.pending_write import LearnerError
from actors.weight_buckets import WeightBucket
from actors.worker.label import WorkerLabel
from actors.worker.memory import own_memory_mib
from actors.worker.ports import reserve_port
from actors.worker.process import ProcessLocation, own_location
from actors.worker.turn_times import TurnTimes
from actors.worker.working_time import WorkingTime
from rl.trajectory import LearnerUpdate, Rewards, ScoredGroup, TrainingSample, WorkSpan, WrittenFile
from rl.weight_transfer.description import WeightTensor, in_buckets
from rl.weight_transfer.meeting import MeetingPoint

if TYPE_CHECKING:
    from actors.learner_link import Sent
    from rl.checkpoint.snapshot import Snapshot

log = logging.getLogger(__name__)
TURN_S = 900.0  # for an engine that is starting on the same GPU
WRITING = "writing"  # the thread of a rank's process in which checkpoints are written
ABORTING = "aborting"  # the thread that tears down a link on which the rank is sending


class LearnerWorker:
    """One rank of the learner group. Every method is collective with the other ranks."""

    def __init__(self, rank: int) -> None:
        from actors.learner_link import LearnerLink  # torch, which the driver does without

        self._rank, self._world_size, self._label = rank, 1, WorkerLabel()
        self._learner: Any = None
        self._link = LearnerLink()
        self._working = WorkingTime()
        self._port: socket.socket | None = None
        self._received: list[ScoredGroup] = []
        self._captured: dict[str, Snapshot] = {}
        self._turn, self._away = ExitStack(), TurnTimes()  # on a GPU that it shares with engines

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
        groups, lost = fetch_groups_that_are_there(held)
        pairs = zip(groups, rewards, strict=True)
        self._received = [ScoredGroup(group, rewards_G) for group, rewards_G in pairs if group is not None]
        return lost

    def update(self, step: int, version: int, recorded: int) -> LearnerUpdate:
        """Take the optimizer steps of one update on the groups received, from weights of this version.

        Args:
            recorded: of how many of them, from the first, log-probs are returned.
        """
        self._label.at(step)
        received, self._received = self._received, []
        with self._working:
            update = self._learner.learn(received, version, step)
        spans = [WorkSpan(f"learner/{self._rank}", "update", *interval) for interval in self._working.take()]
        spans += [WorkSpan(f"offloaded/{self._rank}", *turn) for turn in self._away.take()]
        return replace(update, logprobs_PG=update.logprobs_PG[:recorded], spans=tuple(spans))

    def supervise(self, samples: list[TrainingSample]) -> dict[str, float]:
        """One supervised step on this rank's samples."""
        return self._learner.supervise(fetch_samples(samples))

    def losses(self, samples: list[TrainingSample]) -> list[tuple[float, int]]:
        """Summed negative log-prob of each of this rank's samples, and its number of tokens."""
        return self._learner.losses(fetch_samples(samples))

    def optimizer_digest(self) -> str:
        """Of this rank's master weights and AdamW's state."""
        return self._learner.optimizer_digest()

    def export(self, bucket_bytes: int, trainable_only: bool) -> list[WeightBucket]:
        """Pack this rank's share of the weights into buckets; every rank takes part in the gathering."""
        from actors.weight_packing import pack  # torch, which the driver does without

        buckets = in_buckets(self._learner.described_weights(trainable_only=trainable_only), bucket_bytes)
        wanted = {tensor.name for bucket in buckets[self._rank :: self._world_size] for tensor in bucket}
        return pack(self._learner.named_weights(trainable_only=trainable_only, wanted=wanted), bucket_bytes)

    def offload(self, states: bool) -> None:
        """Leave the GPU to the engines; `states` as in LearnerGroup.offload."""
        self._learner.offload(states=states)
        self._turn.close()
        self._away.gives_up("masters, moments and gradients" if states else "the turn")

    def reload(self) -> None:
        """Take the GPU back: no engine can start on it until `offload`.

        Raises:
            TimeoutError: an engine that starts has kept it for `TURN_S`.
        """
        self._turn.enter_context(gpu_turn(ray.get_gpu_ids(), TURN_S))
        self._learner.reload()
        self._away.gives_up("")

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
