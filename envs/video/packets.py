"""A file's moving stream, and its packets in decoding order."""

from __future__ import annotations

from dataclasses import dataclass

import av

from envs.video.codecs.readers import reader_for
from envs.video.file import BREAKS_OFF, MAX_PICTURE_PIXELS, CorruptVideoError, NoVideoStreamError

MAX_PACKETS = 1_000_000  # of a stream: nine hours at 30 fps; a stream without end is refused rather than waited for


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet's place in its stream, in units of the stream's time base, and what it holds."""

    pts: int | None
    dts: int | None
    duration: int  # 0: not known
    is_key: bool  # as the container says
    is_discarded: bool  # decoded, but outside of what the container's edit list shows
    place: int  # in the file, bytes; -1: not known
    size: int  # bytes
    is_shown: bool  # it gives a picture that is shown; False of references that never are
    is_entry: bool  # decoding may begin with it
    order: int | None  # its picture's place in display order; None: not known


def read_packets(path: str, container, stream) -> tuple[list[Packet], av.VideoFrame | None]:
    """All packets up to the end or to where the file breaks off, and the first picture that decodes."""
    packets, picture, read = [], None, 0
    read_content, may_enter = reader_for(stream.codec_context, container.format.name), True
    try:
        for packet in container.demux(stream):
            read += 1
            if read > MAX_PACKETS:
                problem = f"has more than {MAX_PACKETS} packets: does its stream never end?"
                raise CorruptVideoError(path, problem, "cut it into shorter clips, or drop the row")
            if picture is None:
                picture = next(iter(decode_packet(stream.codec_context, packet) or ()), None)
            if packet.size:
                # a header that came between: who enters behind it has not read it
                may_enter = may_enter and not (packets and packet.has_sidedata("new_extradata"))
                packets.append(_described(packet, read_content, may_enter))
    except MemoryError:
        raise  # FFmpeg's own is one, too
    except BREAKS_OFF:
        pass  # the file breaks off here; how much is missing is judged by its declared duration
    return packets, picture


def _described(packet: av.Packet, read_content, may_enter: bool) -> Packet:
    is_shown, is_entry, order = read_content(memoryview(packet), packet.is_keyframe)
    return Packet(
        packet.pts,
        packet.dts,
        packet.duration or 0,
        packet.is_keyframe,
        packet.is_discard,
        -1 if packet.pos is None else packet.pos,
        packet.size,
        is_shown,
        is_entry and may_enter,
        order,
    )


def decode_packet(decoder: av.CodecContext, packet: av.Packet | None) -> list[av.VideoFrame] | None:
    """Pictures that come out; None if the packet is damaged (its frames then count as missing)."""
    try:
        return decoder.decode(packet)
    except MemoryError:
        raise  # not the packet's fault; FFmpeg's own is one, too
    except av.error.FFmpegError:
        return None


def picture_bytes(picture: av.VideoFrame) -> int:
    """Memory that a decoded picture holds."""
    return sum(plane.buffer_size for plane in picture.planes)


def best_stream(container: av.container.InputContainer, path: str) -> av.video.stream.VideoStream:
    """The stream a runner would show; cover art does not count.

    Raises:
        NoVideoStreamError: there is none.
    """
    moving = moving_streams(container)
    best = container.streams.best("video")
    if not moving:
        raise NoVideoStreamError(path, "has no video stream (audio only?)", "drop the row or replace the file")
    return next((stream for stream in moving if best is not None and stream.index == best.index), moving[0])


def moving_streams(container: av.container.InputContainer) -> list[av.video.stream.VideoStream]:
    cover = av.stream.Disposition.attached_pic
    return [stream for stream in container.streams.video if not stream.disposition & cover]


def refuse_huge(path: str, decoder: av.video.codeccontext.VideoCodecContext) -> None:
    """By what the header declares, before any picture is allocated; the decoder has the same limit for what comes."""
    if decoder.width * decoder.height > MAX_PICTURE_PIXELS:
        problem = (
            f"declares pictures of {decoder.width} x {decoder.height} pixels, at most {MAX_PICTURE_PIXELS} are read"
        )
        raise CorruptVideoError(path, problem, "scale the video down, or replace the file if its header is damaged")
