"""Clips checked in parallel, each in a process that can be killed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import replace
from queue import SimpleQueue

from rich.console import Console

from envs.data.clip_status import CheckedClip, ClipStatus, check_clip
from rl.config.data import VideoConfig
from rl.run.console.stages import counted_stage
from rl.run.prepare.episode_context import make_reader


def is_known(clip: CheckedClip | None, sample: bool) -> bool:
    """Whether a validation need not try this clip again; a sample is no proof that the rest can be decoded."""
    return clip is not None and (sample or not clip.sampled or clip.status is ClipStatus.QUARANTINED)


def checked_clips(
    clips: Sequence[str], video: VideoConfig, console: Console, *, workers: int = 0, sample: bool = False
) -> Iterator[CheckedClip]:
    """Check clips; a status comes as soon as it is known.

    Args:
        workers: decoding processes; 0: one per core.
        sample: open them and decode a few frames only.
    """
    workers = workers or os.cpu_count() or 1
    readers = SimpleQueue()
    doing = f"{'looking into' if sample else 'decoding'} {len(clips):,} clips"
    with ExitStack() as stack, counted_stage(console, doing, len(clips)) as decoding:
        for _ in range(min(workers, len(clips))):
            readers.put(stack.enter_context(make_reader(replace(video, decode_workers=1, frame_cache_bytes=0))))

        def check(clip: str) -> CheckedClip:
            reader = readers.get()
            try:
                return check_clip(reader, clip, sample=sample)
            finally:
                readers.put(reader)

        pool = stack.enter_context(ThreadPoolExecutor(workers))
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        for done in as_completed([pool.submit(check, clip) for clip in clips]):
            yield done.result()
            decoding.advance()
