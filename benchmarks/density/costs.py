"""What the density of a look costs by itself: frames, scenes and tokens of the evidence window at every rate.

No policy is asked: the same windows of the same clips, decoded at each of the world's rates, cut into scenes as the
policy's are, and, beside that, into pairs of frames as stock encoders cut.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from benchmarks.density.runs import world_of
from envs.initial_observation import decode
from envs.synthetic.world import render_world
from envs.tools.rules import RetrievalRules
from envs.tools.span_fps import frame_times, parse_call, render_call
from envs.video.reader import VideoReader
from rl.config.run import RunConfig
from rl.policy.processor import Processor
from rl.policy.tiny_tokenizer import tiny_processor
from rl.trajectory import TimeSpan

HEADINGS = ("rate of the look", "frames", "scenes", "tokens, times included", "tokens if cut in pairs")


def cost_table(config: RunConfig, clips: int = 60) -> Iterator[Sequence[str]]:
    """A row per rate of a run's world: means over the evidence windows of its first held-out clips, whatever they
    need."""
    files = render_world(world_of(config), config.cache_dir)
    rows = [json.loads(line) for line in files.held_out_jsonl.read_text(encoding="utf-8").splitlines()][:clips]
    videos = [(str(files.folder / row["video"]), TimeSpan(row["gt_span_start"], row["gt_span_end"])) for row in rows]
    scenes = config.policy.scenes
    with tempfile.TemporaryDirectory() as folder:
        dynamic, pairs = (
            tiny_processor(config.policy.tiny, cut, Path(folder)) for cut in (scenes, replace(scenes, mode="fixed"))
        )
        reader = VideoReader(workers=0)
        try:
            for fps in world_of(config).tempo_fps:
                looked = [_cost(reader, video, window, fps, config, dynamic, pairs) for video, window in videos]
                yield f"{fps:g}", *(f"{fmean(column):.1f}" for column in zip(*looked, strict=True))
        finally:
            reader.close()


def _cost(
    reader: VideoReader,
    video: str,
    window: TimeSpan,
    fps: float,
    config: RunConfig,
    dynamic: Processor,
    pairs: Processor,
) -> tuple[int, int, int, int]:
    """Frames, scenes, tokens and tokens in pairs of one look."""
    rules, clip = RetrievalRules(max_fps=fps, max_frames=10_000), reader.describe(video)
    call = parse_call(render_call(window, fps), duration_s=clip.duration_s, native_fps=clip.native_fps, rules=rules)
    size = dynamic.fit(clip.height, clip.width, config.retrieval.max_pixels)
    pixels_THWC, shown_s_T = decode(reader, video, frame_times(call), size)
    cut, paired = (processor.make_frames(pixels_THWC, shown_s_T) for processor in (dynamic, pairs))
    tokens = len(dynamic.video_block(cut)), len(pairs.video_block(paired))
    return cut.num_frames, len(cut.scene_lengths), *tokens
