"""Odd but lawful (and some broken) files by the thousand, the same ones for the same seed."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import av
import numpy as np

from tests.envs.video.odd import bitstreams, clocks, matroska, mp4, streams
from tests.envs.video.odd.seeds import Seed

TWICE = 0.25  # of the files are changed twice
MP4 = ("mp4", "mov", "3gp")
MATROSKA = ("mkv", "webm")
LOSSY = (
    *("dropped", "thinned", "begins_late", "ts_packets_lost", "avi_dropped", "cluster_dropped", "fragments_dropped"),
    *("noisy", "cut_off", "garbage_behind", "fragments_doubled"),
)
AGAIN = ("joined", "fragments_doubled", "fragments_moved", "cluster_doubled", "again_from_a_cluster_on", "flv_moved")
UNLAWFUL = {  # what makes no sense of a container: without lengths of its pieces, or without times of its packets
    "any.joined": ("ivf", "nut"),
    "any.joined_with_another": ("ivf", "nut"),
    "any.garbage_behind": ("ivf", "nut"),
    "clock.doubled": ("mpg", "vob", "mxf", "ts", "h264", "hevc", "m2v"),
    "clock.slower": ("mpg", "vob"),
}
JOINED = "any.joined_with_another"  # of the same container, maybe another codec, size or rate
UNFIT = (  # what a mutation raises over a file that lacks what it would change, or a container over what it cannot hold
    *(av.error.FFmpegError, ValueError, TypeError, IndexError, AttributeError, OverflowError, struct.error),
    StopIteration,
)


@dataclass(frozen=True, slots=True)
class OddFile:
    """A file and how it came about."""

    name: str
    kind: str
    content: bytes
    once: OddFile | None = None  # of one changed twice: with the first change only

    @property
    def is_lossy(self) -> bool:
        """Pictures that others refer to are missing or noisy: what decoders make of that is their own affair."""
        return any(kind.split(".")[1] in LOSSY for kind in self.kind.split("+"))

    @property
    def is_joined(self) -> bool:
        """Two clips end to end, maybe of two codecs, or a piece that comes twice."""
        return any(name in self.kind for name in AGAIN)

    @property
    def is_cut_off(self) -> bool:
        """The end of the file is missing."""
        return "cut_off" in self.kind

    @property
    def begins_late(self) -> bool:
        """Its first pictures have nothing to be decoded from."""
        return "begins_late" in self.kind

    @property
    def has_seams(self) -> bool:
        """Two stretches lie end to end."""
        return self.is_joined or any(name in self.kind for name in ("edit_list", "times_moved", "flv_moved"))

    @property
    def ends_untimed(self) -> bool:
        """AVI gives no times to the pictures that the decoder holds back to the end."""
        return self.name.endswith(".avi")

    @property
    def has_long_sound(self) -> bool:
        """The file's declared length is that of its sound."""
        return "long-sound" in self.name


def _kinds() -> dict[str, tuple]:
    """Name of a mutation: the mutation, and the suffixes of the files that it is for (none: any)."""
    found = {f"clock.{one.__name__}": (clocks.changed(one), ()) for one in clocks.CHANGES}
    found["clock.wrapped"] = clocks.changed(clocks.wrapped, {"mpegts_copyts": "1"}), ("ts",)
    found["clock.empty_packets"] = clocks.changed(clocks.empty_packets, None, "avi"), ("avi",)
    found |= {f"mp4.{one.__name__}": (mp4.edited(one), MP4) for one in mp4.CHANGES}
    found |= {f"matroska.{one.__name__}": (matroska.edited(one), MATROSKA) for one in matroska.CHANGES}
    for suffix, changes in streams.CHANGES.items():
        found |= {f"{suffix}.{one.__name__}": (one, (suffix,)) for one in changes}
    found |= {f"any.{one.__name__}": (one, ()) for one in streams.EVERYWHERE}
    for one in (bitstreams.other_container, bitstreams.other_options, bitstreams.filtered, bitstreams.noisy):
        found[f"coded.{one.__name__}"] = one, ()
    found[JOINED] = None, ()
    return found


KINDS = _kinds()


def odd_files(seeds: Sequence[Seed], count: int, seed: int, kinds: Sequence[str] = ()) -> Iterator[OddFile]:
    """`count` files, each kind in turn on a clip by chance; a quarter of them changed twice."""
    names = list(kinds or np.random.default_rng(seed).permutation(sorted(KINDS)))
    made = number = 0
    while made < count:
        rng = np.random.default_rng([seed, number])
        odd = _odd(seeds, names[number % len(names)], names, rng, f"{number:05d}-")
        number += 1
        if odd is not None:
            made += 1
            yield odd
        elif number > 50 * count:
            raise RuntimeError(f"{made} files of {number} tries: none of the clips takes the changes {names}")


def _odd(
    seeds: Sequence[Seed], kind: str, kinds: Sequence[str], rng: np.random.Generator, prefix: str
) -> OddFile | None:
    fitting = [one for one in seeds if _is_for(kind, one.suffix) and not (kind == JOINED and one.has_two_videos)]
    if not fitting:
        return None
    clip = fitting[rng.integers(len(fitting))]
    if kind == JOINED:
        behind = [one for one in fitting if one.suffix == clip.suffix]
        changed = clip.content + behind[rng.integers(len(behind))].content, clip.suffix
    else:
        changed = _changed(kind, clip.content, clip.suffix, rng)
    if changed is None or changed == (clip.content, clip.suffix):
        return None
    stem = clip.name.rsplit(".", 1)[0]
    once = OddFile(f"{prefix}{kind}-{stem}.{changed[1]}", kind, changed[0])
    if rng.random() < TWICE:
        again = str(rng.choice([one for one in kinds if one != JOINED and _is_for(one, changed[1])]))
        twice = _changed(again, *changed, rng)
        if twice is not None and twice != changed:
            return OddFile(f"{prefix}{kind}+{again}-{stem}.{twice[1]}", f"{kind}+{again}", twice[0], once)
    return once


def _is_for(kind: str, suffix: str) -> bool:
    if suffix in UNLAWFUL.get(kind, ()):
        return False
    return not KINDS[kind][1] or suffix in KINDS[kind][1]


def _changed(kind: str, content: bytes, suffix: str, rng: np.random.Generator) -> tuple[bytes, str] | None:
    try:
        out = KINDS[kind][0](content, suffix, rng)
    except UNFIT:
        return None
    if out is None or out == b"":
        return None
    return out if isinstance(out, tuple) else (out, suffix)
