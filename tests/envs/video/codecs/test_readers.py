"""What packets say of themselves: shown or not, entries or only called keyframes, the order of display."""

import av
import pytest

from envs.video.codecs.av1 import Av1Reader
from envs.video.codecs.bits import Bits, HeaderError, without_emulation
from envs.video.codecs.content import HIDDEN
from envs.video.codecs.h263 import read_flv1, read_h263, read_msmpeg4, read_wmv2
from envs.video.codecs.h264 import H264Reader
from envs.video.codecs.hevc import HevcReader
from envs.video.codecs.mpeg import Mpeg4Reader, read_theora
from envs.video.codecs.nal import OrderCount
from envs.video.codecs.readers import needs_first_packet, reader_for
from envs.video.codecs.vpx import read_vp6, read_vp8, read_vp9
from tests.envs.video.clips import render


def bits(text):
    """Bytes of a header written as bits."""
    text = text.replace(" ", "")
    return int(text.ljust(-(-len(text) // 8) * 8, "0") or "0", 2).to_bytes(-(-len(text) // 8))


def contents(path, container="avi", bsf=None):
    """Of each packet of a rendered file, or of each piece that a bitstream filter makes of it."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        read = reader_for(stream.codec_context, container)
        split = av.bitstream.BitStreamFilterContext(bsf, stream).filter if bsf else lambda packet: [packet]
        packets = [piece for packet in file.demux(stream) if packet.size for piece in split(packet)]
        return [read(memoryview(packet), packet.is_keyframe) for packet in packets]


def in_display_order(found):
    return [number for _, number in sorted((content.order, number) for number, content in enumerate(found))]


# Bits -----------------------------------------------------------------------------------------------------------------


def test_numbers_of_a_header():
    header = Bits(bits("101 1 010 00101 011 00100"))
    assert (header.read(3), header.golomb(), header.golomb(), header.golomb()) == (5, 0, 1, 4)
    assert (header.signed_golomb(), header.signed_golomb()) == (-1, 2)
    with pytest.raises(HeaderError):
        Bits(b"\1").read(9)
    with pytest.raises(HeaderError):
        Bits(bytes(8)).golomb()
    assert without_emulation(b"\0\0\3\1\0\0\3\0\0\3") == b"\0\0\1\0\0\0\0"


# VP8, VP9, AV1 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("read", "payload", "is_key", "is_shown", "is_entry"),
    [
        (read_vp8, bits("0001 0000"), True, True, True),
        (read_vp8, bits("0001 0001"), True, True, False),  # called a keyframe
        (read_vp8, bits("0000 0001"), False, False, False),
        (read_vp9, bits("10 00 0 0 1 0"), True, True, True),
        (read_vp9, bits("10 00 0 1 1 0"), True, True, False),
        (read_vp9, bits("10 00 0 1 0 0"), False, False, False),
        (read_vp9, bits("10 00 1 000"), False, True, False),  # shows an existing frame
        (read_vp9, bits("10 11 0 0 0 1"), True, True, True),  # profile 3
        (read_vp9, bits("01 00 0 0 1 0"), True, True, False),  # damaged
        (read_vp6, bits("0000 0000"), True, True, True),
        (read_vp6, bits("1000 0000"), True, True, False),
        (read_theora, b"\x80theora", True, False, False),  # a header
        (read_theora, b"\x00", True, True, True),
        (read_theora, b"\x40", True, True, False),
        (read_flv1, bits("00000000000000001 00000 00000000 010 00"), True, True, True),
        (read_flv1, bits("00000000000000001 00000 00000000 001" + 32 * "1" + "01"), True, True, False),
        (read_h263, bits(f"{32:022b} 00000000 10 000 010 0"), True, True, True),
        (read_h263, bits(f"{32:022b} 00000000 10 000 010 1"), True, True, False),
        (read_h263, bits(f"{32:022b} 00000000 10 000 111 001" + 18 * "1" + "000"), True, True, True),
        (read_msmpeg4, bits("00"), True, True, True),
        (read_msmpeg4, bits("01"), True, True, False),
        (read_wmv2, bits("0"), True, True, True),
        (read_wmv2, bits("1"), True, True, False),
    ],
)
def test_the_first_bits_of_a_packet(read, payload, is_key, is_shown, is_entry):
    content = read(memoryview(payload), is_key)
    assert (content.is_shown, content.is_entry) == (is_shown, is_entry)


def superframe(*frames):
    marker = 0b11000000 | len(frames) - 1
    sizes = b"".join(len(frame).to_bytes(1) for frame in frames)
    return memoryview(b"".join(frames) + bytes([marker]) + sizes + bytes([marker]))


def test_a_superframe_is_shown_if_one_of_its_frames_is():
    hidden, shown, key = bits("10 00 0 1 0 0") + b"abc", bits("10 00 0 1 1 0") + b"d", bits("10 00 0 0 1 0") + b"ef"
    assert read_vp9(superframe(hidden, shown), False).is_shown
    assert read_vp9(superframe(hidden, hidden), False) == HIDDEN
    assert read_vp9(superframe(key, hidden), True).is_entry and not read_vp9(superframe(shown, key), True).is_entry


def test_av1_temporal_units_are_shown_and_the_hidden_frames_in_them_are_not(tmp_path):
    path = render(tmp_path / "av1.mkv", "libsvtav1", frames=40, gop=20, options={"preset": "12"})
    units, frames = contents(path), contents(path, bsf="av1_frame_split")
    assert [content.is_shown for content in units] == [True] * 40
    assert [number for number, content in enumerate(units) if content.is_entry] == [0, 20]
    assert len(frames) > 40 and sum(content.is_shown for content in frames) == 40


def test_an_av1_keyframe_that_is_shown_later_is_no_entry():
    sequence, delimiter = b"\x0a\x01\x00", b"\x12\x00"
    shown_key, hidden_key, inter = (b"\x32\x01" + bits(text) for text in ("0 00 1", "0 00 0", "0 01 1"))
    read = Av1Reader(b"")
    assert read(memoryview(delimiter + sequence + shown_key), True).is_entry
    assert not read(memoryview(delimiter + shown_key), True).is_entry  # its sequence stands elsewhere
    assert read(memoryview(sequence + hidden_key), True) == HIDDEN
    assert not read(memoryview(sequence + hidden_key + inter), True).is_entry
    assert read(memoryview(b"\x32\x7f\x00"), False).is_shown  # damaged


# MPEG-4 ---------------------------------------------------------------------------------------------------------------

LAYER = b"\0\0\1\x20" + bits("0 00000001 0 0001 0 00 1" + f"{25:016b}" + "1 0")  # 25 ticks a second: five bits


def vop(kind, is_coded=True):
    return b"\0\0\1\xb6" + bits(f"{kind:02b} 0 1 00001 1 {int(is_coded)}") + bytes(4)


def test_what_is_not_coded_is_not_shown():
    read = Mpeg4Reader(LAYER)
    found = [read(memoryview(packet), number == 0) for number, packet in enumerate([vop(0), vop(1), vop(1, False)])]
    assert [content.is_shown for content in found] == [True, True, False]


def test_packed_pictures_come_out_one_by_one():
    """A packet holds a picture and the one shown before it; an empty one follows in its place."""
    read = Mpeg4Reader(LAYER)
    found = [read(memoryview(packet), False) for packet in (vop(0), vop(1) + vop(2), vop(1, False), vop(1))]
    assert [content.is_shown for content in found] == [True] * 4
    assert in_display_order(found) == [0, 2, 1, 3]


def test_a_picture_of_the_wrong_kind_is_no_entry():
    read = Mpeg4Reader(LAYER)
    assert read(memoryview(vop(0)), True).is_entry and not read(memoryview(vop(1)), True).is_entry


# H.264 and HEVC -------------------------------------------------------------------------------------------------------

REORDERED = {
    "h264.ts": ("libx264", {"bf": "3"}),
    "h264_open.ts": ("libx264", {"x264-params": "open-gop=1:keyint=20:bframes=3"}),
    "h264_interlaced.ts": ("libx264", {"x264-params": "interlaced=1:bframes=2"}),
    "hevc.ts": ("libx265", {"x265-params": "log-level=none:keyint=20:bframes=4"}),
    "hevc_open.mp4": ("libx265", {"x265-params": "log-level=none:open-gop=1:keyint=20"}),
    "h264.mp4": ("libx264", {"bf": "3"}),
    "mpeg2.ts": ("mpeg2video", {"bf": "2"}),
    "mpeg4.avi": ("mpeg4", {"bf": "2"}),
}


@pytest.mark.parametrize("name", REORDERED)
def test_the_order_of_display_is_the_order_in_which_pictures_come_out(tmp_path, name):
    codec, options = REORDERED[name]
    path = render(tmp_path / name, codec, frames=60, options=options)
    with av.open(str(path)) as file:
        numbers, came_out = iter(range(60)), []
        for packet in file.demux(video=0):
            if packet.size:
                packet.pts = next(numbers)
            came_out += [picture.pts for picture in packet.decode()]
    assert in_display_order(contents(path)) == came_out


def test_counts_wrap_and_go_back():
    order = OrderCount()
    order.begin_anew()
    places = [order(low, 4, is_reference=low != 2) for low in (0, 4, 2, 8, 12, 0, 14, 4)]
    assert [place - places[0] for place in places] == [0, 4, 2, 8, 12, 16, 14, 20]
    order.begin_anew()
    assert order(0, 4, is_reference=True) > max(places)


def test_gradual_refresh_is_no_entry_and_an_open_group_is(tmp_path):
    def entries(name, params):
        path = render(tmp_path / name, frames=60, options={"x264-params": params})
        with av.open(str(path)) as file:
            keys = [n for n, packet in enumerate(p for p in file.demux(video=0) if p.size) if packet.is_keyframe]
        return keys, [number for number, content in enumerate(contents(path)) if content.is_entry]

    assert entries("refresh.ts", "intra-refresh=1:keyint=20:bframes=0:scenecut=0") == ([0, 20, 40], [0])
    assert entries("open.ts", "open-gop=1:keyint=20:min-keyint=20:scenecut=0:bframes=2")[1][1:]


def units(*payloads):
    return memoryview(b"".join(b"\0\0\0\1" + payload for payload in payloads))


PICTURE_SETS = [
    b"\x68" + bits("1 1 0 0 1 1 00 1 1 1 1 0 0 1 1000"),
    b"\x68" + bits("1 1 1 0 1 1 00 1 1 1 1 0 0 1 1000"),
]
IDR = b"\x65" + bits("1 1 1 0000")


def test_a_keyframe_that_needs_an_earlier_packets_parameter_set_is_no_entry():
    read = H264Reader(bytes(units(PICTURE_SETS[0])), wants_order=False)
    assert read(units(IDR), True).is_entry
    assert read(units(PICTURE_SETS[0], IDR), True).is_entry  # the one it began with
    assert read(units(PICTURE_SETS[1], IDR), True).is_entry  # brings its own
    assert not read(units(IDR), True).is_entry
    assert read(units(PICTURE_SETS[1], IDR), True).is_entry


def test_the_second_field_of_a_frame_gives_no_picture_of_its_own():
    """As broadcasts send them: a packet per field. Baseline, order count in 4 bits, frames may be fields."""
    sequence = b"\x67" + bytes([66, 0, 30]) + bits("1 1 1 1 010 0 00110 00110 0 1 0 0 1")
    read = H264Reader(bytes(units(sequence, b"\x68" + bits("1 1 0 0 1 1 1 00 1 1 1 1 0 0 1"))), wants_order=True)

    def field(frame, low, is_bottom, kind=0x41, idr=""):
        return units(bytes([kind]) + bits(f"1 1 1 {frame:04b} 1 {is_bottom} {idr} {low:04b} 1"))

    found = [
        read(packet, number == 0)
        for number, packet in enumerate(
            [field(0, 0, 0, 0x65, "1"), field(0, 1, 1), field(1, 4, 0), field(1, 5, 1), field(2, 2, 1), field(2, 3, 0)]
        )
    ]
    assert [content.is_shown for content in found] == [True, False] * 3
    assert in_display_order(found[::2]) == [0, 2, 1]


def hevc(kind, header):
    return bytes([kind << 1, 1]) + bits(header) + b"\x80"


HEVC_SET = hevc(34, "1 1 0 1 000")  # number 0, of sequence 0; slices say if they are shown


@pytest.mark.parametrize(
    ("kinds", "is_shown"),
    [
        ([(19, "1 0 1 1 1"), (1, "1 1 1 1"), (1, "1 1 1 0")], [True, True, False]),  # pic_output_flag
        ([(21, "1 0 1 1 1"), (8, "1 1 1 1"), (1, "1 1 1 1")], [True, False, True]),  # leading, of a first keyframe
        ([(19, "1 0 1 1 1"), (21, "1 0 1 1 1"), (9, "1 1 1 1")], [True, True, True]),  # of a later one
        ([(19, "1 0 1 1 1"), (16, "1 0 1 1 1"), (9, "1 1 1 1")], [True, True, False]),  # where a link is broken
        ([(19, "1 0 1 1 1"), (36, ""), (21, "1 0 1 1 1"), (9, "1 1 1 1")], [True, True, False]),  # a sequence ended
    ],
)
def test_hevc_pictures_that_are_never_shown(kinds, is_shown):
    read = HevcReader(bytes(units(HEVC_SET)), wants_order=False)
    found = [read(units(hevc(kind, header)), kind in (16, 19, 21)) for kind, header in kinds]
    assert [content.is_shown for (kind, _), content in zip(kinds, found, strict=True) if kind != 36] == is_shown


@pytest.mark.parametrize("read", [H264Reader(b"", True), HevcReader(b"", True), Mpeg4Reader(b""), Av1Reader(b"")])
@pytest.mark.parametrize("payload", [b"\0", b"\xff" * 7, b"\0\0\1", b"\0\0\1\x65", b"\0\0\1\x26\1\xff", b"\0\0\1\xb6"])
def test_garbage_is_a_frame_that_is_missing(read, payload):
    assert read(memoryview(payload), False).is_shown


@pytest.mark.parametrize(
    ("name", "codec", "needed"), [("a.mp4", "libx264", False), ("b.mp4", "mpeg4", True), ("c.mp4", "libx265", False)]
)
def test_who_goes_by_the_first_packet(tmp_path, name, codec, needed):
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    with av.open(str(render(tmp_path / name, codec, frames=5, options=options))) as file:
        assert needs_first_packet(file.streams.video[0].codec_context) is needed
