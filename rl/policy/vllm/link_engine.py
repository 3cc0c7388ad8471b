"""vLLM's weight-transfer engine of this project: weights come over a link, straight into the live parameters.

vLLM's own engines reload layer by layer between start and finish, which needs every parameter of a layer; here a push
may carry those that train and no others. vLLM finds this class by its name in `weight_transfer_config`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from rl.weight_transfer.description import WeightTensor
from rl.weight_transfer.link import Link, MeetingPoint, open_link
from rl.weight_transfer.stream import receive_weights


@dataclass
class LinkInitInfo(WeightTransferInitInfo):
    """Where to meet the sender, and as whom."""

    point: Sequence[object]  # the fields of a MeetingPoint, in order
    first_member: int  # of this engine's workers: the one of rank 0


@dataclass
class LinkUpdateInfo(WeightTransferUpdateInfo):
    """What the sender will send."""

    buckets: Sequence[Sequence[tuple[str, str, Sequence[int]]]]  # of each tensor the fields of a WeightTensor


class LinkTransferEngine(WeightTransferEngine[LinkInitInfo, LinkUpdateInfo]):
    """A worker's end of a link."""

    init_info_cls = LinkInitInfo
    update_info_cls = LinkUpdateInfo

    _link: Link | None = None

    def init_transfer_engine(self, init_info: LinkInitInfo) -> None:
        """Meet the sender and the other workers; a link from before is let go of."""
        self.shutdown()
        member = init_info.first_member + self.parallel_config.rank
        self._link = open_link(MeetingPoint(*init_info.point), member, self.device)

    def start_weight_update(self) -> None:
        """Nothing: parameters stay where they are."""

    def finish_weight_update(self) -> None:
        """Nothing: they are complete as soon as they have come."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As vLLM's, which would ask for an accelerator; what has come has been read by then."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: LinkUpdateInfo) -> None:
        """Overwrite the live parameters with what comes over the link.

        Raises:
            LinkError: it stopped coming; a part may be there.
            ValueError: a name or shape is not the model's.
        """
        buckets = [[WeightTensor(name, dtype, tuple(shape)) for name, dtype, shape in b] for b in update_info.buckets]
        try:
            self.sent_checksums = receive_weights(self._link, buckets, self._load)
        except BaseException:
            self._link.abort()
            raise

    def shutdown(self) -> None:
        """Let go of the link."""
        if self._link is not None:
            self._link.abort()
            self._link = None

    def _load(self, named: Iterator[tuple[str, torch.Tensor]]) -> None:
        self.model.load_weights(named)
