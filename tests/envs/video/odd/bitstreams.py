"""Sound clips whose coded pictures say unusual things, or that lie in another container."""

from __future__ import annotations

import io

import av
import numpy as np

from tests.envs.video.odd.clocks import EXACT, FORMATS

TARGETS = ("mp4", "mov", "mkv", "ts", "avi", "flv", "mpg", "webm", "ogv", "3gp")
MUXING = {  # options of the container's writer
    "mp4": (
        {"movflags": "frag_keyframe+empty_moov"},
        {"movflags": "frag_every_frame+empty_moov+default_base_moof"},
        {"movflags": "dash+delay_moov", "frag_duration": "300000"},
        {"movflags": "negative_cts_offsets"},
        {"video_track_timescale": "1000"},
        {"video_track_timescale": "30"},
        {"video_track_timescale": "90000"},
        {"use_editlist": "0"},
        {"movie_timescale": "600"},
    ),
    "mkv": (
        *({"cluster_time_limit": "100"}, {"live": "1"}, {"dash": "1"}, {"cues_to_front": "1"}, {"write_crc32": "0"}),
        *({"default_mode": "infer_no_subs"}, {"flipped_raw_rgb": "1"}),
    ),
    "ts": (
        *({"mpegts_m2ts_mode": "1"}, {"muxrate": "800000"}, {"omit_video_pes_length": "0"}, {"pcr_period": "500"}),
        *({"mpegts_flags": "initial_discontinuity"}, {"mpegts_flags": "resend_headers"}, {"pes_payload_size": "200"}),
    ),
    "avi": ({"write_channel_mask": "0"}, {"reserve_index_space": "1000"}),
    "flv": ({"flvflags": "no_metadata"}, {"flvflags": "no_duration_filesize"}, {"flvflags": "add_keyframe_index"}),
    "mpg": ({"preload": "0"}, {"muxrate": "2000000"}),
}
H264 = (
    "h264_metadata=sample_aspect_ratio=4/3",
    "h264_metadata=sample_aspect_ratio=64/45",
    "h264_metadata=rotate=90:display_orientation=insert",
    "h264_metadata=rotate=180:display_orientation=insert",
    "h264_metadata=display_orientation=insert:flip=horizontal",
    "h264_metadata=tick_rate=100:fixed_frame_rate_flag=0",
    "h264_metadata=video_full_range_flag=1",
    "h264_metadata=matrix_coefficients=1",
    "h264_metadata=aud=insert",
    "filter_units=remove_types=6",
)
FILTERS = {
    "h264": H264,
    "hevc": (
        *("hevc_metadata=sample_aspect_ratio=4/3", "hevc_metadata=aud=insert"),
        "hevc_metadata=video_full_range_flag=1",
    ),
    "mpeg2video": ("mpeg2_metadata=display_aspect_ratio=16/9", "mpeg2_metadata=frame_rate=30"),
    "vp9": ("vp9_superframe_split", "vp9_metadata=color_range=pc"),
    "av1": ("av1_metadata=td=remove", "av1_metadata=color_range=pc"),
}


def other_container(content: bytes, suffix: str, rng: np.random.Generator) -> tuple[bytes, str] | None:
    """The same packets in another container, or in the same with other options."""
    if suffix == "avi":
        return None  # it has no presentation times, which the others would be told from it
    to = str(rng.choice(TARGETS))
    options = MUXING.get(to, ({},))
    return _copied(content, to, options[rng.integers(len(options))] if rng.random() < 0.6 else {}, None)


def other_options(content: bytes, suffix: str, rng: np.random.Generator) -> bytes | None:
    if suffix not in MUXING:
        return None
    copied = _copied(content, suffix, MUXING[suffix][rng.integers(len(MUXING[suffix]))], None)
    return copied and copied[0]


def filtered(content: bytes, suffix: str, rng: np.random.Generator) -> tuple[bytes, str] | None:
    with av.open(io.BytesIO(content)) as container:
        codec = container.streams.video[0].codec_context.name
    names = FILTERS.get(codec)
    return None if names is None else _copied(content, suffix, {}, names[rng.integers(len(names))])


def noisy(content: bytes, suffix: str, rng: np.random.Generator) -> tuple[bytes, str] | None:
    """Some bits of the coded pictures turned over."""
    return _copied(content, suffix, {}, f"noise=amount={int(rng.choice([500, 3000, 20_000]))}")


def _copied(content: bytes, to: str, options: dict[str, str], filter_name: str | None) -> tuple[bytes, str] | None:
    target = io.BytesIO()
    form = FORMATS.get(to, to)
    with av.open(io.BytesIO(content)) as old, av.open(target, "w", format=form, options=options | EXACT) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        through = av.bitstream.BitStreamFilterContext(filter_name, stream, copy) if filter_name else None
        packets = [packet for packet in old.demux(stream) if packet.size]
        for packet in [*packets, None] if through else packets:
            for one in through.filter(packet) if through else (packet,):
                one.stream = copy
                new.mux(one)
    return target.getvalue(), to
