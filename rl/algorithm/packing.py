"""Which samples a micro-batch holds: samples that begin alike go together, and micro-batches are filled by tokens.

Siblings have their opening in common: the prompt with the coarse frames. A micro-batch computes it once
(rl.policy.packing). No sample is padded, so that what a micro-batch costs is its number of tokens, and micro-batches
are filled first-fit over sorted sizes (Johnson 1973): at most 11/9 of the fewest possible, and one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from rl.trajectory import Frames, Segment, TrainingSample

if TYPE_CHECKING:
    from rl.policy.token_ids import TokenIds


class VideoMeasure(Protocol):
    """What finding common openings needs of rl.policy.processor.Processor."""

    ids: TokenIds

    def visual_tokens(self, frames: Frames) -> int:
        """Placeholders of a block."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """Samples that share their first tokens and videos; one alone shares nothing."""

    members: tuple[int, ...]  # which samples
    tokens: int  # that they share
    videos: int  # that they share
    own_tokens: tuple[int, ...]  # of each member, after the shared ones

    @property
    def size(self) -> int:
        """Tokens to compute."""
        return self.tokens + sum(self.own_tokens)

    def only(self, places: Sequence[int]) -> Sharing:
        """Some of its members, by their places in it."""
        members = tuple(self.members[place] for place in places)
        return replace(self, members=members, own_tokens=tuple(self.own_tokens[place] for place in places))


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a micro-batch. A single sample may exceed `tokens`: it cannot be cut."""

    samples: int
    tokens: int = 0  # 0: no limit

    def allow(self, samples: int, tokens: int) -> bool:
        """Whether so many fit."""
        return samples <= self.samples and (not self.tokens or tokens <= self.tokens)


def alone(samples: Sequence[TrainingSample]) -> list[Sharing]:
    """Every sample by itself."""
    return [Sharing((index,), 0, 0, (len(sample.token_ids),)) for index, sample in enumerate(samples)]


def with_common_openings(samples: Sequence[TrainingSample], measure: VideoMeasure) -> list[Sharing]:
    """Samples whose openings have the same tokens and show the same videos, together; in order of first appearance.

    The opening is what stands before the first token that the policy wrote.
    """
    by_opening: dict[tuple, list[int]] = {}
    for index, sample in enumerate(samples):
        tokens = _opening_tokens(sample)
        videos = _opening_videos(sample, tokens, measure)
        key = (sample.token_ids[:tokens], tuple(frames.digest for frames in sample.videos[:videos]))
        by_opening.setdefault(key, []).append(index)
    return [_shared(samples, members, len(opening), len(videos)) for (opening, videos), members in by_opening.items()]


def micro_batches(sharings: Sequence[Sharing], limits: Limits) -> list[tuple[Sharing, ...]]:
    """Fill micro-batches, the largest pieces first, each into the first one that has room.

    What exceeds a micro-batch is cut between its members, and its pieces compute what they share once each.
    """
    pieces = [piece for sharing in sharings for piece in _pieces(sharing, limits)]
    pieces.sort(key=lambda piece: (-piece.size, piece.members))
    filled: list[list[Sharing]] = []
    for piece in pieces:
        fitting = (batch for batch in filled if _fits(piece, batch, limits))
        batch = next(fitting, None)
        if batch is None:
            filled.append([piece])
        else:
            batch.append(piece)
    return [tuple(batch) for batch in filled]


def _shared(samples: Sequence[TrainingSample], members: Sequence[int], tokens: int, videos: int) -> Sharing:
    if len(members) == 1:
        tokens = videos = 0
    own = tuple(len(samples[index].token_ids) - tokens for index in members)
    return Sharing(tuple(members), tokens, videos, own)


def _opening_tokens(sample: TrainingSample) -> int:
    context = Segment.CONTEXT.value
    return next((place for place, segment in enumerate(sample.segment_ids) if segment != context), 0)


def _opening_videos(sample: TrainingSample, tokens: int, measure: VideoMeasure) -> int:
    """Videos whose placeholders all stand in the first `tokens`."""
    left, count = sample.token_ids[:tokens].count(measure.ids.video_pad), 0
    for frames in sample.videos:
        left -= measure.visual_tokens(frames)
        if left < 0:
            break
        count += 1
    return count


def _pieces(sharing: Sharing, limits: Limits) -> Iterator[Sharing]:
    """The whole, or, where it does not fit, members longest first as long as they do."""
    order = sorted(range(len(sharing.members)), key=lambda place: (-sharing.own_tokens[place], place))
    if limits.allow(len(order), sharing.size):
        yield sharing
        return
    taken: list[int] = []
    for place in order:
        grown = sharing.only([*taken, place])
        if taken and not limits.allow(len(grown.members), grown.size):
            yield sharing.only(taken)
            taken = []
        taken.append(place)
    yield sharing.only(taken)


def _fits(piece: Sharing, batch: Sequence[Sharing], limits: Limits) -> bool:
    together = [piece, *batch]
    return limits.allow(sum(len(one.members) for one in together), sum(one.size for one in together))
