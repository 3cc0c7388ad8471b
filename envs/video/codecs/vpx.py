"""VP6, VP8 and VP9: frame headers and superframes."""

from __future__ import annotations

from envs.video.codecs.bits import Bits, HeaderError
from envs.video.codecs.content import ENTRY, HIDDEN, SHOWN, Content

_FRAME_MARKER = 0b10
_SUPERFRAME_MARKER = 0b110


def read_vp6(payload: memoryview, is_key: bool) -> Content:
    """A keyframe says so with its first bit."""
    return ENTRY if is_key and not payload[0] & 0x80 else SHOWN


def read_vp8(payload: memoryview, is_key: bool) -> Content:
    """Alternate reference frames have packets of their own, told by a bit of the first byte; so are keyframes."""
    is_shown, is_inter = payload[0] & 0x10 != 0, payload[0] & 0x01 != 0
    return Content(is_shown, is_entry=is_key and is_shown and not is_inter)


def read_vp9(payload: memoryview, is_key: bool) -> Content:
    """A packet may hold several frames, of which some, or all, only serve as references."""
    try:
        headers = [_frame(frame) for frame in _frames(payload)]
    except HeaderError:
        return SHOWN  # damaged: a frame that is missing rather than one that was never there
    if not any(is_shown for is_shown, _ in headers):
        return HIDDEN
    return ENTRY if is_key and headers[0][1] else SHOWN


def _frames(payload: memoryview) -> list[memoryview]:
    """The frames of a superframe, whose index stands at its end between two equal bytes; or the one frame."""
    marker = payload[-1]
    count, width = (marker & 7) + 1, (marker >> 3 & 3) + 1
    index_bytes = 2 + count * width
    if marker >> 5 != _SUPERFRAME_MARKER or len(payload) < index_bytes or payload[-index_bytes] != marker:
        return [payload]
    index, frames, start = payload[1 - index_bytes : -1], [], 0
    for number in range(count):
        size = int.from_bytes(index[number * width : (number + 1) * width], "little")
        if size:
            frames.append(payload[start : start + size])
        start += size
    return frames


def _frame(frame: memoryview) -> tuple[bool, bool]:
    """Whether a frame is shown, and whether it is a keyframe."""
    bits = Bits(frame[:2])
    if bits.read(2) != _FRAME_MARKER:
        raise HeaderError("no VP9 frame")
    if bits.read(2) == 0b11:  # profile 3 has one bit more
        bits.read(1)
    if bits.flag():  # an existing frame is shown
        return True, False
    is_inter, is_shown = bits.flag(), bits.flag()
    return is_shown, not is_inter
