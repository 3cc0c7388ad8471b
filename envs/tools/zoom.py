"""The tool `zoom`: `<zoom>t</zoom><box>x0 y0 x1 y1</box>`, a region of the frame on screen at one moment, enlarged.

t is in seconds from the start of the clip; the box is left, top, right, bottom in thousandths of the frame's width and
height, whole numbers or decimal ones, parted by blanks or commas and in brackets or not. Thousandths do not depend on
the size that frames were shown in, take few tokens, and are how Qwen3-VL has learned to point.

The region is cut out of the clip's original pixels, so that it shows what smaller frames cannot, and is brought to
`zoom_max_pixels`, whatever its size: an image costs the same wherever it is cut.
"""

from __future__ import annotations

import re

from envs.tools.rules import NUMBER, RetrievalRules
from envs.tools.tool import Box, ClipView, Shown
from rl.trajectory import Call, MalformedCall, RefusedCall, TimeSpan, ToolCall

NAME = "zoom"
TAGS = _ZOOM_OPEN, _ZOOM_CLOSE, _BOX_OPEN, _BOX_CLOSE = "<zoom>", "</zoom>", "<box>", "</box>"
WHOLE = 1000.0  # thousandths: a frame's width or height
SMALLEST_PIXELS = 4  # of the clip's own, either side: fewer are no region but a point
LONGEST_SIDES = 20  # longer over shorter side: beyond it nothing would be left of the shorter one
_MOST_DIGITS = 9  # before the point: more than any clip or frame needs
_TIME = re.compile(rf"\s*+({NUMBER})\s*+")
_BETWEEN = r"(?:\s*+,\s*+|\s++)"
_SIDES = _BETWEEN.join([f"({NUMBER})"] * 4)
_BOX = re.compile(rf"\s*+[\[(]?+\s*+{_SIDES}\s*+[\])]?+\s*+")


class Zoom:
    """A region of one moment, at the clip's own resolution: an `envs.tools.tool.Tool`."""

    name = NAME
    tags = TAGS
    nothing = "no image"

    def __init__(self, rules: RetrievalRules) -> None:
        """
        Args:
            rules: `zoom_max_pixels` of them.
        """
        self._max_pixels = rules.zoom_max_pixels

    def parse(self, text: str, clip: ClipView) -> Call:
        """The request that a text ends in. A box that reaches beyond the frame is cut off at its border. Linear in the
        length of the text."""
        match read_zoom(text):
            case MalformedCall() as malformed:
                return malformed
            case time_s, asked:
                return _granted(time_s, asked, clip)

    def tokens(self, call: ToolCall, clip: ClipView) -> int:
        """Of one image."""
        return clip.image_tokens(call.box, self._max_pixels)

    def shrink(self, call: ToolCall, clip: ClipView, room: int) -> Call:
        """An image is there as a whole or not at all."""
        return RefusedCall("no room is left for an image", NAME)

    def insert(self, call: ToolCall, clip: ClipView) -> Shown:
        """The region."""
        return clip.image(call.arguments["time_s"], call.box, self._max_pixels)


def render_zoom(time_s: float, box: Box) -> str:
    """The text of a request, as the policy is taught to write it."""
    return f"<zoom>{time_s:g}</zoom><box>{' '.join(f'{side:g}' for side in box)}</box>"


def read_zoom(text: str) -> tuple[float, Box] | MalformedCall:
    """Moment and box of the request that a text ends in, as they are written. Never raises; linear in its length."""
    start = text.rfind(_ZOOM_OPEN)
    if start < 0:
        return MalformedCall("no moment before the box", NAME)
    moment, closed, rest = text[start + len(_ZOOM_OPEN) :].removesuffix(_BOX_CLOSE).partition(_ZOOM_CLOSE)
    if not closed:
        return MalformedCall("the moment is not closed", NAME)
    blanks, opened, box = rest.partition(_BOX_OPEN)
    if not opened or blanks.strip():
        return MalformedCall("no box right after the moment", NAME)
    if not (moment_match := _TIME.fullmatch(moment)):
        return MalformedCall("the moment is not a number of seconds", NAME)
    if not (box_match := _BOX.fullmatch(box)):
        return MalformedCall("the box is not four numbers, left top right bottom", NAME)
    return _number(moment_match[1]), tuple(map(_number, box_match.groups()))


def _granted(time_s: float, asked: Box, clip: ClipView) -> Call:
    left, top, right, bottom = box = tuple(min(max(side, 0.0), WHOLE) for side in asked)
    if refusal := _refusal(time_s, asked, box, clip):
        return RefusedCall(refusal, NAME)
    moment_s = min(time_s, clip.duration_s)
    return ToolCall(
        NAME,
        {"time_s": moment_s, "box": (left, top, right, bottom)},
        clamped=("box",) if box != asked else (),
        span=TimeSpan(moment_s, moment_s),
        box=box,
        num_frames=1,
        asked_box=asked if box != asked else None,
    )


def _refusal(time_s: float, asked: Box, box: Box, clip: ClipView) -> str:
    if not 0 <= time_s <= clip.duration_s:
        return "the moment lies outside the video"
    if asked[2] <= asked[0] or asked[3] <= asked[1]:
        return "the box is reversed or empty"
    width, height = (box[2] - box[0]) / WHOLE * clip.width, (box[3] - box[1]) / WHOLE * clip.height
    if width <= 0 or height <= 0:
        return "the box lies outside the frame"
    if min(width, height) < SMALLEST_PIXELS:
        return f"the box is smaller than {SMALLEST_PIXELS} x {SMALLEST_PIXELS} pixels of the video"
    if max(width, height) > LONGEST_SIDES * min(width, height):
        return "the box is a line, not a region"
    return ""


def _number(text: str) -> float:
    """A decimal number to hundredths; one with more digits than any clip needs becomes as many nines."""
    sign, (whole, _, fraction) = -1.0 if text.startswith("-") else 1.0, text.lstrip("-").partition(".")
    whole = whole.lstrip("0")
    value = 10.0**_MOST_DIGITS - 1 if len(whole) > _MOST_DIGITS else float(f"{whole or 0}.{fraction[:4] or 0}")
    return sign * round(value, 2) + 0.0  # no sign on zero
