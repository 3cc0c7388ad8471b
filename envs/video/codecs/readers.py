"""Which reader a codec's packets take."""

from __future__ import annotations

import av

from envs.video.codecs.av1 import Av1Reader
from envs.video.codecs.content import ENTRY, SHOWN, Content, ReadContent
from envs.video.codecs.h263 import READERS as H263_FAMILY
from envs.video.codecs.h264 import H264Reader
from envs.video.codecs.hevc import HevcReader
from envs.video.codecs.mpeg import Mpeg2Reader, Mpeg4Reader, read_theora
from envs.video.codecs.vpx import read_vp6, read_vp8, read_vp9

STATELESS: dict[str, ReadContent] = {
    **H263_FAMILY,
    "theora": read_theora,
    "vp6": read_vp6,
    "vp6f": read_vp6,
    "vp8": read_vp8,
    "vp9": read_vp9,
}
IN_ORDER = {
    "av1": Av1Reader,
    "libdav1d": Av1Reader,
    "mpeg1video": Mpeg2Reader,
    "mpeg2video": Mpeg2Reader,
    "mpeg4": Mpeg4Reader,
}
BY_ORDER_COUNT = {"h264": H264Reader, "hevc": HevcReader}
INDEPENDENT = ("png",)  # pictures, beside codecs that FFmpeg knows to have no others
OWN_TIMES = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "asf", "nut")  # containers whose times need no check


def reader_for(decoder: av.video.codeccontext.VideoCodecContext, container: str) -> ReadContent:
    """What reads the packets of a stream, from its first one on.

    Args:
        container: FFmpeg's name of the format.
    """
    if decoder.name in BY_ORDER_COUNT:
        return BY_ORDER_COUNT[decoder.name](decoder.extradata or b"", wants_order=container not in OWN_TIMES)
    if decoder.name in IN_ORDER:
        return IN_ORDER[decoder.name](decoder.extradata or b"")
    if decoder.name in STATELESS:
        return STATELESS[decoder.name]
    return _every_picture if decoder.codec.intra_only or decoder.name in INDEPENDENT else _FirstOnly()


def needs_first_packet(decoder: av.video.codeccontext.VideoCodecContext) -> bool:
    """Whether decoders go by who encoded a stream, which stands in its first packet only.

    FFmpeg decodes MPEG-4 as its encoder's version meant it, and 4:4:4 H.264 as x264 did before 2017.
    """
    return decoder.name == "mpeg4" or (decoder.name == "h264" and "420" not in (decoder.pix_fmt or ""))


def _every_picture(payload: memoryview, is_key: bool) -> Content:
    return ENTRY


class _FirstOnly:
    """Of a codec whose packets are not read: decoding begins with its first keyframe, always. Its container may call
    others keyframes, but a picture that needs what came before may decode to something else without an error."""

    def __init__(self) -> None:
        self._has_begun = False

    def __call__(self, payload: memoryview, is_key: bool) -> Content:
        begins, self._has_begun = is_key and not self._has_begun, self._has_begun or is_key
        return ENTRY if begins else SHOWN
