"""The tool `span_fps`, looking again: `<span>a - b</span><fps>f</fps>`, from text to a granted call and its frames.

Numbers are decimal; seconds from the start of the clip, and frames per second. They are read into whole hundredths
and stay integers until the end: in floats about 0.6 % of windows get one frame too many or too few.

Legend: N frames of a call · _cs hundredths of a second · _cf hundredths of a frame per second.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

from envs.tools.rules import NUMBER, RetrievalRules
from envs.tools.tool import ClipView, Shown
from rl.trajectory import SPAN_FPS, Call, MalformedCall, RefusedCall, RetrievalCall, TimeSpan

_HUNDREDTHS = 10_000  # hundredths of a second times hundredths of a frame per second, in one frame
_SATURATED = 10**12  # a number with more digits than any clip needs; keeps `int` out of quadratic territory
_WINDOW = re.compile(rf"\s*+({NUMBER})\s*+-\s*+({NUMBER})\s*+")
_RATE = re.compile(rf"\s*+({NUMBER})\s*+")
TAGS = _SPAN_OPEN, _SPAN_CLOSE, _FPS_OPEN, _FPS_CLOSE = "<span>", "</span>", "<fps>", "</fps>"


class SpanFps:
    """The frames of a window of the clip, at a rate: the first tool, an `envs.tools.tool.Tool`."""

    name = SPAN_FPS
    tags = TAGS
    nothing = "no frames"

    def __init__(self, rules: RetrievalRules) -> None:
        """
        Args:
            rules: limits of this run.
        """
        self._rules = rules

    def parse(self, text: str, clip: ClipView) -> Call:
        """As many frames as the limits allow; `shrink` then asks for as many as the context holds."""
        rules = self._rules
        call = parse_call(text, duration_s=clip.duration_s, native_fps=clip.native_fps, rules=rules)
        return MalformedCall("the request cannot be read") if call is None else call

    def tokens(self, call: RetrievalCall, clip: ClipView) -> int:
        """As if each frame were a scene of its own."""
        return clip.frames_tokens(frame_times(call), self._rules.max_pixels)

    def shrink(self, call: RetrievalCall, clip: ClipView, room: int) -> Call:
        """Fewer frames, spread over the same window: the most that take no more than `room` tokens."""
        times_s_T, max_pixels = frame_times(call), self._rules.max_pixels
        fitting, too_many = 0, call.num_frames
        while too_many - fitting > 1:
            middle = (fitting + too_many) // 2
            fits = clip.frames_tokens(times_s_T[:middle], max_pixels) <= room
            fitting, too_many = (middle, too_many) if fits else (fitting, middle)
        if not fitting:
            return RefusedCall("no room is left for frames")
        clamped = (*(name for name in call.clamped if name != "frames"), "frames")
        return replace(call, num_frames=fitting, clamped=clamped)

    def insert(self, call: RetrievalCall, clip: ClipView) -> Shown:
        """The frames of the window."""
        return clip.frames(frame_times(call), self._rules.max_pixels)


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
