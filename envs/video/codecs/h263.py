"""H.263 and what descends from it: Sorenson Spark (flv1), MS MPEG-4, WMV 7 and 8. Whether a picture needs no other
stands near the start of its header; containers that call it a keyframe are not always right."""

from __future__ import annotations

from envs.video.codecs.bits import Bits, HeaderError
from envs.video.codecs.content import ENTRY, SHOWN, Content, ReadContent

_H263_START, _SPARK_START = 0x20, 1
_EXTENDED = 7  # a source format: more headers follow
_SPARK_SIZE_BITS = {0: 16, 1: 32}  # of a size that is written out; others are one of a list


def read_h263(payload: memoryview, is_key: bool) -> Content:
    """Picture start code, temporal reference, source format, then the type."""
    return _entry_if(_h263_is_intra, payload, is_key)


def read_flv1(payload: memoryview, is_key: bool) -> Content:
    """Sorenson Spark."""
    return _entry_if(_spark_is_intra, payload, is_key)


def read_msmpeg4(payload: memoryview, is_key: bool) -> Content:
    """MS MPEG-4 versions 2 and 3, and WMV 7: two bits."""
    return _entry_if(lambda bits: bits.read(2) == 0, payload, is_key)


def read_wmv2(payload: memoryview, is_key: bool) -> Content:
    """WMV 8: one bit."""
    return _entry_if(lambda bits: bits.read(1) == 0, payload, is_key)


READERS: dict[str, ReadContent] = {
    "h263": read_h263,
    "flv": read_flv1,
    "msmpeg4v2": read_msmpeg4,
    "msmpeg4": read_msmpeg4,
    "wmv1": read_msmpeg4,
    "wmv2": read_wmv2,
}


def _entry_if(is_intra, payload: memoryview, is_key: bool) -> Content:
    if not is_key:
        return SHOWN
    try:
        return ENTRY if is_intra(Bits(payload[:16])) else SHOWN
    except HeaderError:
        return SHOWN


def _h263_is_intra(bits: Bits) -> bool:
    if bits.read(22) != _H263_START:
        return False
    bits.read(8 + 2 + 3)
    if bits.read(3) != _EXTENDED:
        return not bits.flag()
    if bits.read(3) == 1:  # the extended format is written out
        bits.read(18)
    return bits.read(3) == 0


def _spark_is_intra(bits: Bits) -> bool:
    if bits.read(17) != _SPARK_START:
        return False
    bits.read(5 + 8)
    bits.read(_SPARK_SIZE_BITS.get(bits.read(3), 0))
    return bits.read(2) == 0
