"""Ours against a second decoder: order, number, times, length, shape and pixels of every frame, then single looks.

Right is what a player shows. Where a file may be refused (nothing decodes, a clock that starts again, more than a
tenth missing or damaged by the second decoder's own word), a refusal by name is right too.

Legend: N frames in the order in which they are shown · M the second decoder's · T frames asked for · H W pixels.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from envs.data.clip_status import ClipStatus, check_clip
from envs.video.reader import VideoError, VideoReader
from tests.envs.video.odd.files import OddFile, odd_files
from tests.envs.video.odd.seeds import Seed, make_seeds
from tests.envs.video.second_decoder import Shown, show

SIZE_HW = (72, 96)
PIXELS_APART = 2.5  # mean absolute difference of two pictures that are the same: other scalers, other rounding
TIME_APART_S = 0.0021  # two roundings to a millisecond
HELD_BACK = 3  # pictures, by a decoder of pictures that wait for others
SEAM_S = 0.25
FAR_S = 10.0
CLOCK_NAMED = ("clock", "end to end")  # a refusal of a file whose clock goes back says so
BAD_SHARE = 0.1  # of a clip that may be missing or damaged
LOOKS = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one file was read."""

    kind: str  # agree, refused, refused wrongly, or what is wrong: order, number, times, length, shape, pixels, looks
    detail: str = ""

    @property
    def is_fault(self) -> bool:
        return self.kind not in ("agree", "refused")


@dataclass(frozen=True, slots=True, eq=False)
class Ours:
    """Every frame of the clip as our reader gives it."""

    times_s_N: np.ndarray
    duration_s: float
    shape_HW: tuple[int, int]
    pixels_NHWC: np.ndarray
    own_N: np.ndarray  # not a neighbour that stands in for a damaged frame
    num_damaged: int  # those that another stands in for, and those that are shown all the same


def compare(odd: OddFile, path: Path, whole: VideoReader, looks: VideoReader, rng: np.random.Generator) -> Verdict:
    """
    Args:
        path: where the file lies.
        whole: reads the clip in one pass, with a cache.
        looks: reads single looks, without one.
    """
    right = show(path, SIZE_HW)
    try:
        ours = _read(path, whole)
    except VideoError as error:
        return _judge_refusal(error, odd, path, right)
    if not len(right.times_s_N):
        return Verdict("number", f"{len(ours.times_s_N)} frames, right: none ({right.complaints[:1]})")
    right = _from_first_keyframe(odd, ours, right)
    return (
        (None if odd.is_lossy and not odd.is_joined else _order(ours, right))
        or _number(ours, right, odd)
        or _times(ours, right, odd)
        or _length(ours, right, odd)
        or _shape(ours, right)
        or (None if odd.is_lossy else _pixels(ours, right, odd))
        or _looks(path, ours, whole, looks, rng)
        or Verdict("agree")
    )


def _read(path: Path, reader: VideoReader) -> Ours:
    clip = reader.describe(str(path))
    pixels, shown_s, damaged = reader.frames(str(path), tuple(clip.times_s_N), SIZE_HW)
    return Ours(
        times_s_N=np.asarray(clip.times_s_N),
        duration_s=clip.duration_s,
        shape_HW=(clip.height, clip.width),
        pixels_NHWC=pixels,
        own_N=np.abs(np.asarray(shown_s) - clip.times_s_N) < 1e-9,
        num_damaged=damaged,
    )


def _judge_refusal(error: VideoError, odd: OddFile, path: Path, right: Shown) -> Verdict:
    detail = f"{type(error).__name__}: {error.problem}"
    count = len(right.times_s_N)
    if not count or len(right.complaints) > BAD_SHARE * count or _is_truncated(odd, right):
        return Verdict("refused", detail)
    if (odd.is_lossy and "damaged" in error.problem) or (odd.is_cut_off and "truncated" in error.problem):
        return Verdict("refused", detail)
    names_clock = any(word in error.problem for word in CLOCK_NAMED)
    if names_clock and (odd.is_joined or _starts_again(show(path, SIZE_HW, as_written=True))):
        return Verdict("refused", detail)
    return Verdict("refused wrongly", f"{detail} (shown: {count} frames up to {_end_s(right):.3f} s)")


def _from_first_keyframe(odd: OddFile, ours: Ours, right: Shown) -> Shown:
    """Players make something up for pictures before the first keyframe; to leave them out is right, too."""
    first = int(np.argmax(right.is_key_N)) if right.is_key_N.any() else 0
    if odd.begins_late:
        first = max(first, len(right.times_s_N) - len(ours.times_s_N))
    if not first or len(ours.times_s_N) == len(right.times_s_N):
        return right
    return replace(
        right,
        times_s_N=right.times_s_N[first:],
        stays_s_N=right.stays_s_N[first:],
        shapes_N=right.shapes_N[first:],
        pixels_NHWC=right.pixels_NHWC[first:],
        is_key_N=right.is_key_N[first:],
    )


def _starts_again(right: Shown) -> bool:
    return bool(np.any(np.diff(right.times_s_N) < 0))


def _is_truncated(odd: OddFile, right: Shown) -> bool:
    return not odd.has_long_sound and _end_s(right) < (1 - BAD_SHARE) * right.declared_s


def _end_s(right: Shown) -> float:
    """When the last frame leaves the screen, from the first one on."""
    return float(right.times_s_N[-1] - right.times_s_N[0] + _last_stay_s(right))


def _last_stay_s(right: Shown) -> float:
    return float(right.stays_s_N[-1]) or _usual_gap_s(right)


def _usual_gap_s(right: Shown) -> float:
    return float(np.median(np.diff(right.times_s_N))) if len(right.times_s_N) > 1 else 0.04


def _order(ours: Ours, right: Shown) -> Verdict | None:
    """Where the clock goes back, the order in which the pictures leave the decoder is what a player shows."""
    if not _starts_again(right):
        return None
    if len(ours.times_s_N) == len(right.times_s_N):
        apart = [_apart(one, other) for one, other in zip(ours.pixels_NHWC, right.pixels_NHWC, strict=True)]
        if max(apart) <= PIXELS_APART:
            return Verdict("agree")
    return Verdict("order", f"the clock goes back; {len(ours.times_s_N)} frames, right: {len(right.times_s_N)}")


def _number(ours: Ours, right: Shown, odd: OddFile) -> Verdict | None:
    count, lost = len(ours.times_s_N), int((~ours.own_N).sum())
    slack = max(1, round(2 * BAD_SHARE * count)) if odd.is_lossy else int(odd.is_joined)
    if count - lost - slack <= len(right.times_s_N) <= count + slack:
        return None
    return Verdict("number", f"{count} frames ({lost} damaged), right: {len(right.times_s_N)}")


def _matches(ours: Ours, right: Shown) -> np.ndarray:
    """Place in M of each of our frames that is its own; -1 for one that the second decoder does not show."""
    if len(right.times_s_N) == len(ours.times_s_N):
        return np.arange(len(ours.times_s_N))
    kept = np.flatnonzero(ours.own_N)
    places = np.full(len(ours.times_s_N), -1)
    if len(kept) == len(right.times_s_N):
        places[kept] = np.arange(len(kept))
        return places
    times_s_M = right.times_s_N - right.times_s_N[0] + ours.times_s_N[kept[0]]
    for number in kept:
        nearest = int(np.argmin(np.abs(times_s_M - ours.times_s_N[number])))
        if abs(times_s_M[nearest] - ours.times_s_N[number]) < TIME_APART_S:
            places[number] = nearest
    return places


def _times(ours: Ours, right: Shown, odd: OddFile) -> Verdict | None:
    places_N = _matches(ours, right)
    kept = np.flatnonzero(places_N >= 0)
    if not len(kept):
        return Verdict("times", f"no frame at a time of the right ones: {ours.times_s_N[:4]} {right.times_s_N[:4]}")
    given, theirs = ours.times_s_N[kept] - ours.times_s_N[kept[0]], right.times_s_N[places_N[kept]]
    theirs = theirs - theirs[0]
    apart = np.abs(given - theirs)
    if np.isnan(apart).all() or np.nanmax(apart) <= TIME_APART_S or _jumps_far(given, theirs):
        return None
    if odd.is_lossy and np.abs(given[:, None] - theirs[None]).min(axis=1).mean() <= 0.04:
        return None
    if odd.ends_untimed and np.nanmax(apart[:-HELD_BACK], initial=0) <= TIME_APART_S:
        return None
    if odd.has_seams and _differ_at_seams_only(given, theirs):
        return None
    worst = int(np.nanargmax(apart))
    return Verdict("times", f"frame {kept[worst]} at {given[worst]:.3f} s, right: {theirs[worst]:.3f} s")


def _differ_at_seams_only(given: np.ndarray, theirs: np.ndarray) -> bool:
    """How long the picture before a seam stays is nobody's word: by its own length, or until its sound has ended."""
    differ = np.abs(np.diff(given) - np.diff(theirs)) > TIME_APART_S
    return differ.mean() <= BAD_SHARE and np.abs(given - theirs).max() <= SEAM_S


def _jumps_far(given: np.ndarray, theirs: np.ndarray) -> bool:
    """A pause of more than ten seconds in a broadcast: some players show it, some go on at once."""
    near = np.diff(given) < FAR_S
    return not near.all() and bool((np.abs(np.diff(given)[near] - np.diff(theirs)[near]) <= TIME_APART_S).all())


def _length(ours: Ours, right: Shown, odd: OddFile) -> Verdict | None:
    end_s, slack_s = _end_s(right), _usual_gap_s(right) + TIME_APART_S
    slack_s += SEAM_S if odd.has_seams else 0
    slack_s += HELD_BACK * _usual_gap_s(right) if odd.ends_untimed or odd.is_lossy else 0
    is_cut = ours.times_s_N[-1] < right.declared_s < end_s  # a declared end may cut the last frame's stay
    if (
        (right.declared_s if is_cut else end_s) - slack_s
        <= ours.duration_s
        <= max(end_s, right.declared_s, _given_end_s(ours, right)) + slack_s
    ):
        return None
    return Verdict("length", f"{ours.duration_s:.3f} s, right: {end_s:.3f} s (declared {right.declared_s:.2f} s)")


def _given_end_s(ours: Ours, right: Shown) -> float:
    return float(ours.times_s_N[-1]) + _last_stay_s(right)


def _shape(ours: Ours, right: Shown) -> Verdict | None:
    (height, width), (right_height, right_width) = ours.shape_HW, right.shapes_N[0]
    if abs(right_width - width * right_height / height) <= 1 + 0.01 * right_width:
        return None
    return Verdict("shape", f"{width} x {height}, right: {right_width} x {right_height}")


def _pixels(ours: Ours, right: Shown, odd: OddFile) -> Verdict | None:
    if odd.is_joined and len(ours.times_s_N) != len(right.times_s_N):
        return None  # a picture more or less at the seam: which stands for which behind it is not known
    places_N, differ = _matches(ours, right), []
    is_seen_N = np.append(np.diff(ours.times_s_N) > 0, True)  # the former of two at the same time is not
    for number in np.flatnonzero((places_N >= 0) & ours.own_N & is_seen_N):
        apart = _apart(ours.pixels_NHWC[number], right.pixels_NHWC[places_N[number]])
        if apart > PIXELS_APART and not right.complaints:
            differ.append(f"frame {number} of {len(places_N)} differs by {apart:.1f}")
    behind_a_seam = round(BAD_SHARE * len(places_N)) if odd.is_joined else 0  # pictures that refer to others before it
    return Verdict("pixels", differ[0]) if len(differ) > behind_a_seam else None


def _looks(path: Path, ours: Ours, whole: VideoReader, looks: VideoReader, rng: np.random.Generator) -> Verdict | None:
    """The same frames whatever was asked before and however they are come by."""
    ends_s = np.append(ours.times_s_N[1:], ours.duration_s)
    numbers = [int(number) for number in rng.integers(len(ends_s), size=LOOKS)]
    for reader, name in ((looks, "without a cache"), (whole, "with one")):
        for number in numbers:
            asked_s = float(ours.times_s_N[number] + 0.4 * (ends_s[number] - ours.times_s_N[number]))
            number = int(np.searchsorted(ours.times_s_N, asked_s + 1e-6, side="right") - 1)
            try:
                pixels, shown_s, damaged = reader.frames(str(path), (asked_s,), SIZE_HW)
            except VideoError as error:
                if ours.num_damaged:
                    continue
                return _if_valid(path, f"frame {number} at {asked_s:.3f} s {name}: {error.problem}")
            apart = _apart(pixels[0], ours.pixels_NHWC[number])
            if apart > 1.0:
                detail = f"frame {number} at {asked_s:.3f} s {name} differs by {apart:.1f} from the pass over the clip"
                return _if_valid(path, f"{detail} (shown: {shown_s[0]:.3f} s, {damaged} damaged)")
    return None


def _if_valid(path: Path, detail: str) -> Verdict:
    """A look may fail where validation refuses the clip: nobody will ask for it then."""
    with VideoReader(workers=0) as reader:
        status = check_clip(reader, str(path))
    is_refused = status.status is ClipStatus.QUARANTINED
    return Verdict("refused", f"at validation: {status.reason}") if is_refused else Verdict("looks", detail)


def _apart(one_HWC: np.ndarray, other_HWC: np.ndarray) -> float:
    return float(np.abs(one_HWC.astype(np.int16) - other_HWC).mean())


def campaign(
    seeds: Sequence[Seed], count: int, seed: int, kinds: Sequence[str] = ()
) -> Iterator[tuple[OddFile, Verdict]]:
    """Compare so many odd files; of one that was changed twice and disagrees, the once changed one if that does too."""
    with tempfile.TemporaryDirectory() as scratch, _readers() as (whole, looks):
        for number, odd in enumerate(odd_files(seeds, count, seed, kinds)):
            verdict = _compare_in(scratch, odd, whole, looks, [seed, number])
            if verdict.is_fault and odd.once is not None:
                simpler = _compare_in(scratch, odd.once, whole, looks, [seed, number])
                if simpler.kind == verdict.kind:
                    odd, verdict = odd.once, simpler
            yield odd, verdict


def _compare_in(folder: str, odd: OddFile, whole: VideoReader, looks: VideoReader, seed: list[int]) -> Verdict:
    path = Path(folder) / odd.name
    path.write_bytes(odd.content)
    try:
        return compare(odd, path, whole, looks, np.random.default_rng(seed))
    finally:
        path.unlink()


def main(count: int, seed: int, kept: str, *kinds: str) -> None:
    """Keep the files on which the two disagree, print how many ended how, in all and of each kind."""
    kept_in, outcomes, started = Path(kept), Counter(), time.perf_counter()
    kept_in.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        seeds = make_seeds(Path(folder))
    for odd, verdict in campaign(seeds, count, seed, kinds):
        outcomes[odd.kind.split("+")[0], verdict.kind] += 1
        if verdict.is_fault:
            (kept_in / odd.name).write_bytes(odd.content)
            sys.stdout.write(f"{verdict.kind:16s} {odd.name}: {verdict.detail}\n")
    for kind in sorted({kind for kind, _ in outcomes}):
        sys.stdout.write(f"{kind:40s} {_counts(outcomes, kind)}\n")
    seconds = time.perf_counter() - started
    sys.stdout.write(f"{outcomes.total()} files in {seconds:.0f} s: {_counts(outcomes)}\n")


def _counts(outcomes: Counter[tuple[str, str]], kind: str | None = None) -> str:
    totals = Counter()
    for (one, verdict), times in outcomes.items():
        totals[verdict] += times if kind in (None, one) else 0
    return ", ".join(f"{verdict} {times}" for verdict, times in totals.most_common() if times)


@contextmanager
def _readers() -> Iterator[tuple[VideoReader, VideoReader]]:
    with (
        VideoReader(workers=1, frame_cache_bytes=64 << 20, timeout_s=30) as whole,
        VideoReader(workers=1, frame_cache_bytes=0, timeout_s=30) as looks,
    ):
        yield whole, looks


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
