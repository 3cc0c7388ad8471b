"""Videos of requests as the policy saw videos in training: coarse frames, decoded by the environment's reader.

vLLM hands a file's bytes to a decoder before it is known for which policy: what is decoded, and how large, is decided
where the policy's folder is known (rl.policy.vllm.videos), by the function that is passed on here.
"""

from __future__ import annotations

import io
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import cache, partial
from typing import Any

import numpy as np
from vllm.multimodal.video import VideoLoader

from envs.initial_observation import CoarseFrameRules, decode_coarse
from envs.video.file import VideoError
from envs.video.reader import VideoReader
from rl.policy.episode_settings import EpisodeSettings
from rl.policy.given_frames import UnusableVideoError
from rl.policy.processor import Processor
from rl.policy.vllm.videos import OPEN
from rl.trajectory import Frames

NUM_FRAMES = 32  # what vLLM says where nobody has said anything
OPTIONS = tuple(rule.name for rule in fields(CoarseFrameRules))
ARCHIVE = b"PK\x03\x04"  # how an .npz begins
MEMORY_MIB = 2048  # of a video, decoded or unpacked: what `video.decode_memory_mib` is in training
MOST_FRAMES = 65_536  # of an .npz, a time each
PACKED_AS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what numpy writes; the others unpack without a bound
BROKEN = (KeyError, ValueError, RuntimeError, MemoryError, OverflowError, OSError, zipfile.BadZipFile, zlib.error)
NO_FRAMES = np.empty((0, 0, 0, 3), np.uint8)  # until it is known which


class CoarseFramesLoader(VideoLoader):
    """A file becomes the coarse view that the policy was trained with; an .npz holds frames that a client has cut."""

    @classmethod
    def load_bytes(cls, data: bytes, num_frames: int = NUM_FRAMES, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Args:
            data: a video file, or an .npz of `frames` (T, H, W, 3) uint8 RGB and `times_s` (T).
            options: coarse frames that differ from the folder's, by the keys of `video.coarse`.
        Raises:
            UnusableVideoError: an option that does not exist, or an archive that is broken or too large.
        """
        unknown = [name for name in options if name not in OPTIONS]
        if unknown or num_frames != NUM_FRAMES:
            named = unknown or ["num_frames"]
            raise UnusableVideoError(
                f"media_io_kwargs.video.{named[0]} is not read here; there are {', '.join(OPTIONS)}"
            )
        if data.startswith(ARCHIVE):
            return _frames_and_times(data)
        return NO_FRAMES, {OPEN: partial(coarse_frames, data, options)}


def coarse_frames(data: bytes, options: Mapping[str, Any], processor: Processor) -> Frames:
    """The coarse view of a video file, as a policy has it in training.

    Raises:
        UnusableVideoError: the file cannot be decoded, or the options do not fit together.
    """
    trained = asdict(EpisodeSettings.of(processor.folder).coarse)
    try:
        rules = CoarseFrameRules(**trained | options)
    except (TypeError, ValueError) as error:
        raise UnusableVideoError(f"media_io_kwargs.video: {error}") from error
    with tempfile.NamedTemporaryFile(prefix="dynframe-video-") as file:
        file.write(data)
        file.flush()
        try:
            _, *decoded = decode_coarse(file.name, processor=processor, reader=reader(), rules=rules, look_pixels=0)
        except VideoError as error:
            raise UnusableVideoError(f"the video {error.problem}; {error.remedy}") from error
    return processor.make_frames(*decoded)


@cache
def reader() -> VideoReader:
    """This process's decoder, in a process that can be killed; nothing is decoded twice, so nothing is kept."""
    return VideoReader(frame_cache_bytes=0, memory_mib=MEMORY_MIB)


def _frames_and_times(data: bytes) -> tuple[np.ndarray, dict[str, Any]]:
    try:
        _require_room(data)
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            frames, times_s = archive["frames"], archive["times_s"]
    except UnusableVideoError:
        raise
    except BROKEN as error:
        raise UnusableVideoError(f"an .npz needs arrays `frames` and `times_s` ({error})") from error
    if not isinstance(frames, np.ndarray) or not isinstance(times_s, np.ndarray):  # a member that is no .npy: bytes
        raise UnusableVideoError("an .npz needs arrays `frames` and `times_s`, as numpy.savez writes them")
    if times_s.ndim != 1 or len(times_s) > MOST_FRAMES:
        raise UnusableVideoError(
            f"an .npz needs `times_s` of shape (T), a time per frame, at most {MOST_FRAMES}; got {times_s.shape}"
        )
    return frames, {"times_s": times_s.tolist()}


def _require_room(data: bytes) -> None:
    """Refuse an archive that is much more than its bytes once it is unpacked. Nothing is unpacked here, and nobody
    unpacks more of a member than its entry says.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
    unpacked_mib = sum(member.file_size for member in members) / 2**20
    if unpacked_mib > MEMORY_MIB:
        raise UnusableVideoError(
            f"an .npz of {unpacked_mib:,.0f} MiB unpacked, at most {MEMORY_MIB} are taken; send fewer or smaller frames"
        )
    if any(member.compress_type not in PACKED_AS for member in members):
        raise UnusableVideoError("an .npz must be stored or deflated, as numpy.savez and savez_compressed write it")
