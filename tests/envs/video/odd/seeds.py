"""Small sound clips of every container and codec that FFmpeg's program writes; each frame carries its number."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.envs.video.clips import render, unchanged_priority
from tests.envs.video.second_decoder import program

FRAMES, FPS = 36, 25
X264 = "-c:v libx264 -preset veryfast -g 12"
X265 = "-c:v libx265 -preset ultrafast -x265-params log-level=none:pools=none:frame-threads=1"
VPX = "-deadline good -cpu-used 5 -b:v 200k -auto-alt-ref 1 -lag-in-frames 16 -g 16 -threads 1"


@dataclass(frozen=True, slots=True)
class Seed:
    """A sound file."""

    name: str
    content: bytes

    @property
    def suffix(self) -> str:
        return self.name.rsplit(".", 1)[1]

    @property
    def has_two_videos(self) -> bool:
        """Which of them goes on in another file is anybody's guess."""
        return self.name.startswith("two")


RECIPES = {  # name: options of the program
    "h264.mp4": f"{X264} -bf 2",
    "h264-plain.mp4": f"{X264} -bf 0",
    "h264-fast.mp4": f"{X264} -bf 2 -movflags faststart",
    "h264-pieces.mp4": f"{X264} -bf 2 -movflags frag_keyframe+empty_moov+default_base_moof",
    "h264-dash.mp4": f"{X264} -bf 2 -movflags cmaf+delay_moov+negative_cts_offsets -frag_duration 200000",
    "h264-sound.mp4": f"{X264} -bf 2 -c:a aac",
    "h264.mov": f"{X264} -bf 2",
    "h264.mkv": f"{X264} -bf 3 -b-pyramid normal",
    "h264-sound.mkv": f"{X264} -bf 2 -c:a aac",
    "h264.ts": f"{X264} -bf 2",
    "h264-sound.ts": f"{X264} -bf 2 -c:a mp2",
    "h264-open.ts": f"{X264} -bf 2 -x264-params open-gop=1",
    "h264-open.mp4": f"{X264} -bf 2 -x264-params open-gop=1",
    "h264-refresh.mp4": f"{X264} -bf 0 -x264-params intra-refresh=1:keyint=12",
    "h264-refresh.ts": f"{X264} -bf 0 -x264-params intra-refresh=1:keyint=12",
    "h264-fields.mp4": f"{X264} -bf 2 -flags +ildct+ilme -x264-params tff=1",
    "h264-fields.ts": f"{X264} -bf 2 -flags +ildct+ilme -x264-params tff=1",
    "h264-444.mp4": f"{X264} -bf 2 -pix_fmt yuv444p",
    "h264-10bit.mkv": f"{X264} -bf 2 -pix_fmt yuv420p10",
    "h264.flv": f"{X264} -bf 2",
    "h264.avi": f"{X264} -bf 0",
    "h264-bframes.avi": f"{X264} -bf 2",
    "h264.nut": f"{X264} -bf 2",
    "h264.h264": f"{X264} -bf 2",
    "hevc.mp4": f"{X265}:keyint=12:bframes=3:open-gop=0 -tag:v hvc1",
    "hevc-open.mp4": f"{X265}:keyint=12:bframes=3:open-gop=1",
    "hevc-open.mkv": f"{X265}:keyint=12:bframes=3:open-gop=1",
    "hevc-open.ts": f"{X265}:keyint=12:bframes=3:open-gop=1",
    "hevc.hevc": f"{X265}:keyint=12:bframes=3",
    "vp8.webm": f"-c:v libvpx {VPX}",
    "vp9.webm": f"-c:v libvpx-vp9 {VPX}",
    "vp9.mp4": f"-c:v libvpx-vp9 {VPX}",
    "vp9-split.webm": f"-c:v libvpx-vp9 {VPX} -bsf:v vp9_superframe_split",
    "vp8.ivf": f"-c:v libvpx {VPX}",
    "vp9.ivf": f"-c:v libvpx-vp9 {VPX}",
    "av1.mp4": "-c:v libsvtav1 -preset 12 -g 12 -svtav1-params lp=1",
    "av1.mkv": "-c:v libsvtav1 -preset 12 -g 12 -svtav1-params lp=1",
    "av1-aom.webm": "-c:v libaom-av1 -cpu-used 8 -g 16 -lag-in-frames 16 -threads 1",
    "av1.ivf": "-c:v libsvtav1 -preset 12 -g 12 -svtav1-params lp=1",
    "mpeg4.mp4": "-c:v mpeg4 -bf 2 -q:v 4 -g 12",
    "mpeg4.avi": "-c:v mpeg4 -q:v 4 -g 12",
    "mpeg4-bframes.avi": "-c:v mpeg4 -bf 2 -q:v 4 -g 12",
    "xvid.avi": "-c:v libxvid -q:v 4 -g 12",
    "mjpeg.avi": "-c:v mjpeg -pix_fmt yuvj420p -q:v 4",
    "mjpeg-sound.avi": "-c:v mjpeg -pix_fmt yuvj420p -q:v 4 -c:a pcm_s16le",
    "huffyuv.avi": "-c:v huffyuv -pix_fmt yuv422p",
    "raw.avi": "-c:v rawvideo -pix_fmt bgr24 -frames:v 12",
    "msmpeg4.avi": "-c:v msmpeg4 -q:v 4 -g 12",
    "wmv.wmv": "-c:v wmv2 -q:v 4 -g 12",
    "wmv.asf": "-c:v wmv1 -q:v 4 -g 12",
    "mpeg1.mpg": "-c:v mpeg1video -q:v 4 -g 12 -bf 2",
    "mpeg2.mpg": "-c:v mpeg2video -q:v 4 -g 12 -bf 2",
    "mpeg2-sound.mpg": "-c:v mpeg2video -q:v 4 -g 12 -bf 2 -c:a mp2",
    "mpeg2.vob": "-c:v mpeg2video -q:v 4 -g 12 -bf 0 -f vob",
    "mpeg2.ts": "-c:v mpeg2video -q:v 4 -g 12 -bf 2",
    "mpeg2-fields.ts": "-c:v mpeg2video -q:v 4 -g 12 -bf 2 -flags +ildct+ilme",
    "mpeg2.m2v": "-c:v mpeg2video -q:v 4 -g 12 -bf 2",
    "mpeg2.mxf": "-c:v mpeg2video -q:v 4 -g 12 -bf 2",
    "flv1.flv": "-c:v flv -q:v 4 -g 12",
    "flv1-sound.flv": "-c:v flv -q:v 4 -g 12 -c:a pcm_s16le -ar 22050",
    "h263.3gp": "-c:v h263 -s 128x96 -q:v 4 -g 12",
    "theora.ogv": "-c:v libtheora -q:v 8 -g 12",
    "theora-sound.ogv": "-c:v libtheora -q:v 8 -g 12 -c:a libopus",
    "prores.mov": "-c:v prores -frames:v 16",
    "png.mov": "-c:v png -frames:v 24",
    "qtrle.mov": "-c:v qtrle -g 12",
    "mjpeg.mov": "-c:v mjpeg -pix_fmt yuvj420p -q:v 4",
    "ffv1.mkv": "-c:v ffv1 -g 1 -frames:v 24",
    "mpeg4.m4v": "-c:v mpeg4 -q:v 4 -g 12",
    "two.mp4": f"{X264} -filter_complex [0:v]split[a][b];[b]scale=64:48[c] -map [a] -map [c]",
    "two.mkv": f"{X264} -filter_complex [0:v]split[a][b];[b]scale=64:48[c] -map [c] -map [a]",
    "cover.mp4": f"{X264} -map 0:v -map 0:v -c:v:0 png -frames:v:0 1 -disposition:v:0 attached_pic -disposition:v:1 0",
    "small.ts": f"{X264} -bf 2 -s 160x120",
    "small.h264": f"{X264} -bf 2 -s 160x120",
    "small.mpg": "-c:v mpeg2video -q:v 4 -g 12 -s 160x120",
    "small.webm": f"-c:v libvpx-vp9 {VPX} -s 160x120",
    "slow.ts": f"{X264} -bf 2 -r 10",
    "long-sound.mp4": f"{X264} -bf 2 -c:a aac",
    "long-sound.mkv": f"{X264} -bf 2 -c:a aac",
    "long-sound.avi": "-c:v mpeg4 -q:v 4 -g 12 -c:a pcm_s16le",
    "long-sound.ts": f"{X264} -bf 2 -c:a mp2",
    "long-sound.mpg": "-c:v mpeg2video -q:v 4 -g 12 -bf 2 -c:a mp2",
    "long-sound.flv": f"{X264} -bf 2 -c:a aac",
    "mpeg4-packable.avi": "-c:v mpeg4 -bf 1 -q:v 4 -g 12",
    "numbers.gif": "-frames:v 16 -r 10",
    "numbers.apng": "-frames:v 16 -plays 0",
}
SOUND = "-f lavfi -i sine=frequency=440:sample_rate=44100:duration=4"


def make_seeds(folder: Path, names: Sequence[str] = ()) -> list[Seed]:
    """Encode the clips that this build of the program can; the others are left out."""
    source = render(folder / "numbers.mkv", "ffv1", frames=FRAMES, fps=FPS, gop=1)
    found = (_encode(folder, source, name) for name in (names or RECIPES))
    return [seed for seed in found if seed is not None]


def _encode(folder: Path, source: Path, name: str) -> Seed | None:
    target, options = folder / name, RECIPES[name].split()
    given = ["-loglevel", "error", "-nostdin", "-y", "-i", str(source)]
    given += SOUND.split() if "-c:a" in options else []
    given += ["-shortest"] if "-c:a" in options and not name.startswith("long") else []
    if "-pix_fmt" not in options and target.suffix not in (".gif", ".apng"):
        given += ["-pix_fmt", _usual_format(options)]
    with unchanged_priority():
        done = subprocess.run([program(), *given, *options, str(target)], capture_output=True, check=False, timeout=120)
    if done.returncode or not target.is_file() or not target.stat().st_size:
        return None
    return Seed(name, target.read_bytes())


def _usual_format(options: list[str]) -> str:
    return {"prores": "yuv422p10", "png": "rgb24", "qtrle": "rgb24"}.get(options[1], "yuv420p")
