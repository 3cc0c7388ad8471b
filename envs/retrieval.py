"""The grammar of looking again: `<span>a - b</span><fps>f</fps>`, from text to a granted call and its frame times.

Numbers are decimal; seconds from the start of the clip, and frames per second. They are read into whole hundredths
and stay integers until the end: in floats about 0.6 % of windows get one frame too many or too few.

Legend: N frames of a call · _cs hundredths of a second · _cf hundredths of a frame per second.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from rl.trajectory import Call, MalformedCall, RefusedCall, RetrievalCall, TimeSpan

_HUNDREDTHS = 10_000  # hundredths of a second times hundredths of a frame per second, in one frame
_SATURATED = 10**12  # a number with more digits than any clip needs; keeps `int` out of quadratic territory
_NUMBER = r"-?+(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)"  # possessive: nothing is ever tried twice
_WINDOW = re.compile(rf"\s*+({_NUMBER})\s*+-\s*+({_NUMBER})\s*+")
_RATE = re.compile(rf"\s*+({_NUMBER})\s*+")
_SPAN_OPEN, _SPAN_CLOSE, _FPS_OPEN, _FPS_CLOSE = "<span>", "</span>", "<fps>", "</fps>"


@dataclass(frozen=True, slots=True)
class RetrievalRules:
    """What a request to look again may ask for."""

    max_calls: int = 1  # granted calls per trajectory; 1 is the paper, 0 turns retrieval off
    min_window_s: float = 0.1
    max_fps: float = 10.0
    max_frames: int = 32  # per call
    max_pixels: int = 151_200  # per frame
    min_fps: float = 0.0  # a lower rate is raised to it

    @property
    def look_pixels(self) -> int:
        """Of a frame at most, in looks that may come; 0: none will."""
        return self.max_pixels if self.max_calls else 0

    def __post_init__(self) -> None:
        if self.max_calls < 0 or self.max_frames < 1:
            raise ValueError(f"max_calls must be >= 0 and max_frames >= 1, got {self.max_calls}, {self.max_frames}")
        if not (self.max_fps > 0 and self.min_window_s >= 0):
            raise ValueError(f"max_fps must be > 0 and min_window_s >= 0, got {self.max_fps}, {self.min_window_s}")
        if not 0 <= self.min_fps <= self.max_fps:
            raise ValueError(f"min_fps must be between 0 and max_fps ({self.max_fps:g}), got {self.min_fps:g}")


def parse_call(
    text: str, *, duration_s: float, native_fps: float, rules: RetrievalRules, max_frames: int | None = None
) -> Call | None:
    """Read the request a turn ends in. Never raises, whatever the text; linear in its length.

    The window is clamped to the clip, the rate to `rules.min_fps .. rules.max_fps` and the native rate, the number of
    frames to `rules.max_frames` and `max_frames`; what was changed is named in `RetrievalCall.clamped`.

    Args:
        text: what the policy wrote in the turn; the part from the last `<span>` on is the request.
        duration_s: length of the clip, seconds.
        native_fps: frame rate of the clip; not positive or not finite: unknown, no limit.
        rules: limits of this run.
        max_frames: frames the remaining context holds; None: no such limit.
    Returns:
        The granted call, why there is none, or None if the text does not end in `</fps>`: nothing was asked.
    """
    if not text.endswith(_FPS_CLOSE):
        return None
    match _read_numbers(text):
        case MalformedCall() as malformed:
            return malformed
        case start_cs, end_cs, rate_cf:
            cap = rules.max_frames if max_frames is None else min(rules.max_frames, max_frames)
            return _grant((start_cs, end_cs), rate_cf, _floor_hundredths(duration_s), native_fps, rules, cap)


def frame_times(call: RetrievalCall) -> tuple[float, ...]:
    """The N asked times of a call in seconds: a + i/f, or spread evenly over the whole window where a cap bites.

    Each is the correctly rounded quotient of two integers, so it equals a presentation time that means the same.
    """
    start_cs, end_cs, rate_cf = round(call.span.start_s * 100), round(call.span.end_s * 100), round(call.fps * 100)
    if call.num_frames < (end_cs - start_cs) * rate_cf // _HUNDREDTHS:
        step, per_step = end_cs - start_cs, call.num_frames
    else:
        step, per_step = _HUNDREDTHS, rate_cf
    return tuple((start_cs * per_step + i * step) / (100 * per_step) for i in range(call.num_frames))


def render_call(span: TimeSpan, fps: float) -> str:
    """The text of a request, as the policy is taught to write it."""
    return f"<span>{span.start_s:.2f} - {span.end_s:.2f}</span><fps>{fps:g}</fps>"


def _read_numbers(text: str) -> tuple[int, int, int] | MalformedCall:
    start = text.rfind(_SPAN_OPEN)
    if start < 0:
        return MalformedCall("no time span before the frame rate")
    window, closed, rest = text[start + len(_SPAN_OPEN) : -len(_FPS_CLOSE)].partition(_SPAN_CLOSE)
    if not closed:
        return MalformedCall("the time span is not closed")
    blanks, opened, rate = rest.partition(_FPS_OPEN)
    if not opened or blanks.strip():
        return MalformedCall("no frame rate right after the time span")
    if not (window_match := _WINDOW.fullmatch(window)):
        return MalformedCall("the time span is not two numbers of seconds, start - end")
    if not (rate_match := _RATE.fullmatch(rate)):
        return MalformedCall("the frame rate is not a number")
    start_cs, end_cs = map(_hundredths, window_match.groups())
    return start_cs, end_cs, _positive_hundredths(rate_match[1])


def _grant(
    window_cs: tuple[int, int], rate_cf: int, duration_cs: int, native_fps: float, rules: RetrievalRules, cap: int
) -> RetrievalCall | RefusedCall:
    start_cs, end_cs = max(window_cs[0], 0), min(window_cs[1], duration_cs)
    granted_cf = min(max(rate_cf, _floor_hundredths(rules.min_fps)), _fastest(native_fps, rules.max_fps))
    if refusal := _refusal(window_cs, end_cs - start_cs, rate_cf, cap, rules.min_window_s):
        return RefusedCall(refusal)
    wanted = max(1, (end_cs - start_cs) * granted_cf // _HUNDREDTHS)
    num_frames = min(wanted, cap)
    changed = {
        "start": start_cs != window_cs[0],
        "end": end_cs != window_cs[1],
        "fps": granted_cf != rate_cf,
        "frames": num_frames != wanted,
    }
    return RetrievalCall(
        asked=TimeSpan(window_cs[0] / 100, window_cs[1] / 100),
        asked_fps=rate_cf / 100,
        span=TimeSpan(start_cs / 100, end_cs / 100),
        fps=granted_cf / 100,
        num_frames=num_frames,
        clamped=tuple(name for name, is_changed in changed.items() if is_changed),
    )


def _refusal(window_cs: tuple[int, int], length_cs: int, rate_cf: int, cap: int, min_window_s: float) -> str:
    if window_cs[1] <= window_cs[0]:
        return "the time span is reversed or empty"
    if length_cs <= 0:
        return "the time span lies outside the video"
    if length_cs < round(min_window_s * 100):
        return f"less than {min_window_s:g} seconds of the video are in the time span"
    if rate_cf <= 0:
        return "the frame rate must be above 0"
    if cap < 1:
        return "no room is left for frames"
    return ""


def _fastest(native_fps: float, max_fps: float) -> int:
    known = math.isfinite(native_fps) and native_fps > 0
    return max(1, _floor_hundredths(min(native_fps, max_fps) if known else max_fps))


def _floor_hundredths(value: float) -> int:
    """The largest whole number of hundredths that is not above `value` as a float; 0 for what is no length."""
    if not (math.isfinite(value) and value > 0):
        return 0
    value = min(value, _SATURATED / 100)
    whole = math.floor(value * 100)
    return whole + 1 if (whole + 1) / 100 <= value else whole


def _positive_hundredths(number: str) -> int:
    """As `_hundredths`, but a positive number too small to be one hundredth counts as one, not as zero."""
    value = _hundredths(number)
    is_tiny = value == 0 and not number.startswith("-") and bool(re.search("[1-9]", number))
    return 1 if is_tiny else value


def _hundredths(number: str) -> int:
    """A decimal number in hundredths, halves rounded up in magnitude; more than 9 digits saturate."""
    sign = -1 if number.startswith("-") else 1
    whole, _, fraction = number.lstrip("-").partition(".")
    whole = whole.lstrip("0")
    if len(whole) > 9:
        return sign * _SATURATED
    digits = fraction[:3].ljust(3, "0")
    return sign * (int(whole or "0") * 100 + int(digits[:2]) + (digits[2] >= "5"))
