"""Where each rule cuts disturbed footage, against what happens in it: nothing is trained.

What happens is known: the cuts between shots, and the frames in which the ball appears, moves and is gone. Precision is
the share of a rule's cuts at such a frame, recall the share of such frames that it cuts at, F1 their harmonic mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

import numpy as np

from benchmarks.flexivideo.runs import ARMS, FOOTAGE, HELD_OUT_SEED
from envs.synthetic.shot_world import ShotWorld, clip_pixels, define_clips
from envs.synthetic.shots import ShotClip
from rl.config.policy import ScenesConfig
from rl.policy.scene_features import SceneFeatures
from rl.policy.scenes import segment_scenes

CLIPS = 64
VARIANTS: Mapping[str, Mapping[str, object]] = {
    "previous frame": {"budget": "none", "reference": "previous"},
    "adaptive, previous frame": {"budget": "none", "threshold": "adaptive", "reference": "previous"},
}


def rules(features: SceneFeatures | None) -> dict[str, ScenesConfig]:
    """Every arm that looks at frames, and two variants; features only where they are given."""
    configured = {name: ScenesConfig(**changes) for name, changes in {**ARMS, **VARIANTS}.items()}
    looking = {name: scenes for name, scenes in configured.items() if scenes.mode == "dynamic"}
    return {name: scenes for name, scenes in looking.items() if scenes.difference == "pixels" or features}


def changes_of(clip: ShotClip) -> set[int]:
    """Frames that differ from the one before."""
    first, count = clip.motion.first_frame, clip.motion.num_frames
    return {*np.cumsum(clip.shot_frames)[:-1].tolist(), *range(first, first + count + 1)}


def f1(cuts: set[int], changes: set[int]) -> float:
    """Harmonic mean of precision and recall; 0 where nothing is found."""
    return 2 * len(cuts & changes) / (len(cuts) + len(changes))


def table(
    compared: Mapping[str, ScenesConfig], features: SceneFeatures | None, clips: int = CLIPS
) -> Iterable[Sequence[str]]:
    """A row per footage: F1 of each rule, and its scenes per clip."""
    world = ShotWorld(clips=clips, seed=HELD_OUT_SEED)
    defined = define_clips(world)
    for name, how in FOOTAGE.items():
        disturbed = world.disturbed(*how)
        shown = [clip_pixels(disturbed, clip, index) for index, clip in enumerate(defined)]
        cells = []
        for scenes in compared.values():
            lengths = [segment_scenes(frames_THWC, scenes, features) for frames_THWC in shown]
            cuts = [set(np.cumsum(own)[:-1].tolist()) for own in lengths]
            scores = [f1(own, changes_of(clip)) for own, clip in zip(cuts, defined, strict=True)]
            cells.append(f"{fmean(scores):.2f} ({fmean(map(len, lengths)):.1f})")
        yield name, *cells
