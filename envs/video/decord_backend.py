"""decord, only where its frame numbers can be trusted; opened and dropped per request.

decord counts packets: on edit lists, several streams or uneven timestamps its frame i is another picture. After a seek
into an open group of pictures, or in a container without a seek table, it is another picture too.

Legend: T frames asked for · H W pixels · C colours (RGB).
"""

from __future__ import annotations

from collections.abc import Sequence

import decord
import numpy as np

from envs.video.file import VideoError, VideoOpenError
from envs.video.index import VideoIndex
from envs.video.orientation import UPRIGHT

decord.logging.set_level(decord.logging.QUIET)  # its FFmpeg writes a line per packet of a broken file

SEEKABLE_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")


class UnsuitableForDecordError(VideoError):
    """A sound video whose frames decord would get wrong."""

    is_lasting = True


def read_frames_decord(
    index: VideoIndex, times_s: Sequence[float], size_HW: tuple[int, int]
) -> tuple[np.ndarray, tuple[float, ...], int]:
    """As video_frames.read_frames, through decord (bicubic resize; damage is not reported).

    Raises:
        UnsuitableForDecordError: see refuse_unsuitable.
        VideoOpenError: decord cannot read the file (AV1, for one).
        FrameRangeError: a time outside the clip.
    """
    asked_T = index.frames_on_screen(times_s)
    refuse_unsuitable(index)
    height, width = size_HW
    try:
        reader = decord.VideoReader(index.path, ctx=decord.cpu(0), width=width, height=height, num_threads=1)
        pixels_THWC = reader.get_batch(asked_T.tolist()).asnumpy() if len(reader) == index.num_frames else None
    except (decord.DECORDError, RuntimeError) as error:
        problem = f"decord cannot read it ({str(error).strip().splitlines()[0]})"
        raise VideoOpenError(index.path, problem, "set video.backend=pyav") from error
    if pixels_THWC is None:
        problem = f"decord counts {len(reader)} frames where there are {index.num_frames}"
        raise UnsuitableForDecordError(index.path, problem, "set video.backend=pyav")
    return pixels_THWC, tuple(float(index.times_s_N[number]) for number in asked_T), 0


def refuse_unsuitable(index: VideoIndex) -> None:
    """Raise unless: one upright stream, everything displayed, even times, closed groups, a seek table."""
    problems = {
        f"has {index.num_video_streams} video streams": index.num_video_streams > 1,
        "has packets that are not displayed (an edit list)": index.has_discarded,
        "has a variable frame rate": index.is_vfr,
        "has packets without presentation times": index.counts_frames,
        "has open groups of pictures": index.has_open_groups,
        f"is in a container without a seek table ({index.container})": index.container not in SEEKABLE_CONTAINERS,
        "says who encoded it in its first packet only": index.needs_first_packet,
        f"is {index.orientation}": index.orientation != UPRIGHT,
    }
    for problem, applies in problems.items():
        if applies:
            raise UnsuitableForDecordError(
                index.path, f"{problem}: decord's frames would be wrong", "set video.backend=pyav"
            )
