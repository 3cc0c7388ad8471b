"""The names that video files have: what is taken for one where a folder is searched, or a row gives no suffix.

A file that is named whole is opened whatever its name; what it is, its content says.
"""

from __future__ import annotations

import os

VIDEO_SUFFIXES = (  # likeliest first; of the containers that envs.video.file reads
    *(".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".gif", ".ogv"),
    *(".m2ts", ".mts", ".3gp", ".3g2", ".asf", ".vob", ".f4v", ".mp4v", ".mpe", ".m1v", ".m2v", ".mpv", ".m2t"),
    *(".qt", ".divx", ".xvid", ".dv", ".mxf", ".nut", ".ogm", ".ogx", ".rm", ".rmvb", ".wtv", ".y4m", ".ivf"),
    *(".obu", ".h264", ".264", ".h265", ".265", ".hevc", ".vvc", ".266", ".mjpg", ".mjpeg", ".apng", ".mk3d"),
)


def is_video_name(name: str | os.PathLike[str]) -> bool:
    """Whether a file is called like a video, in small or capital letters."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES
