"""What decoding frames costs: packets that must be decoded, and whether a request's time allows for more of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from envs.video.index import VideoIndex

SPENT_SHARE = 0.75  # of a request's processor time, that may go into frames which nobody has asked for yet
PICTURES_BETWEEN_LOOKS = 64  # at the clock


def packets_to_decode(index: VideoIndex, numbers: Sequence[int]) -> int:
    """Packets that a pass for these frames (sorted, distinct) decodes: each from its keyframe on, none twice."""
    packets = index.packet_N[list(numbers)]
    decoded = position = 0
    for packet, start in zip(packets.tolist(), index.start_P[packets].tolist(), strict=True):
        position = max(position, start)
        decoded += max(0, packet + 1 - position)
        position = max(position, packet + 1)
    return decoded


class PassTime:
    """Whether a pass over a clip can afford to decode and keep what nobody has asked for yet."""

    def __init__(
        self,
        index: VideoIndex,
        missing: Sequence[int],
        limit_s: float | None,
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """
        Args:
            missing: frames that are asked for, sorted.
            limit_s: processor time of the whole request; None: no limit.
        """
        self._index, self._missing, self._limit_s, self._clock = index, missing, limit_s, clock
        self._began_s, self._pictures = clock(), 0

    def is_short(self, number: int, *, keeps_nothing: bool) -> bool:
        """Whether only what is asked for should be decoded after frame `number`."""
        self._pictures += 1
        if keeps_nothing:
            return True
        if self._limit_s is None or self._pictures % PICTURES_BETWEEN_LOOKS:
            return False
        spent_s = self._clock() - self._began_s
        rest = [missing for missing in self._missing if missing > number]
        left_s = spent_s / self._pictures * packets_to_decode(self._index, rest)
        return spent_s + left_s > SPENT_SHARE * self._limit_s
