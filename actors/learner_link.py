"""A learner rank's end of a link: it sends its weights to the engines that met it."""

from __future__ import annotations

import logging
from typing import Any

import ray

from rl.weight_transfer.description import in_buckets
from rl.weight_transfer.link import Link, listen, open_link
from rl.weight_transfer.meeting import LinkError, MeetingPoint
from rl.weight_transfer.stream import send_weights

log = logging.getLogger(__name__)

Sent = dict[str, str] | str | None  # checksums of what was sent, by name; or why it was not; None: there is no link


class LearnerLink:
    """One rank's link, if it has one."""

    def __init__(self) -> None:
        self._link: Link | None = None
        self._listening: Any = None

    def listen(self) -> tuple[str, int]:
        """Where the members will meet; a link from before is let go of."""
        self.abort()
        self._listening = listen(ray.util.get_node_ip_address())
        return self._listening.getsockname()[:2]

    def open(self, point: MeetingPoint, device: Any) -> str:
        """Meet the engines' workers; returns why they did not meet, or nothing."""
        try:
            self._link = open_link(point, 0, device, self._listening)
        except LinkError as error:
            return str(error)
        return ""

    def send(self, learner: Any, bucket_bytes: int, trainable_only: bool) -> Sent:
        """Send the weights, or take part in gathering them where this rank has no link."""
        link = self._link  # `abort` may take it away meanwhile
        named = iter(learner.named_weights(trainable_only=trainable_only, wanted=None if link else ()))
        sent: Sent = None
        if link is not None:
            buckets = in_buckets(learner.described_weights(trainable_only=trainable_only), bucket_bytes)
            try:
                sent = send_weights(link, buckets, named)
            except LinkError as error:
                log.warning("weights were not sent: %s", error)
                sent = str(error)
        for _ in named:  # other ranks wait for this one in every gathering
            pass
        return sent

    def abort(self) -> None:
        """Fail the transfer under way, from any thread; engines are let go of."""
        link, self._link = self._link, None
        if link is not None:
            link.abort()
