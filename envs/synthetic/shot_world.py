"""The shot world: clips whose questions need what lasts, what follows what, and what is brief; deterministic by seed.

Questions, each with four options in the same order, so that a letter stands for an answer: `still` (at which edge is
the bar?), `order` (which colour comes last?) and `motion` (which way does the ball move?). Answers are dealt evenly,
independently of each other: a guess is right once in four times, who knows the colours but not their order once in
three, who knows the ball's places but not their order every second time.

Rows have the form of LLaVA-Video-178K: one conversation per clip, its questions in turn. The same clips can be rendered
disturbed (envs.synthetic.disturbances); what happens in them stays as it is.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from envs.synthetic.clip import write_mp4
from envs.synthetic.disturbances import DISTURBANCES
from envs.synthetic.shots import COLOURS, DIRECTIONS, SHORTEST_SHOT, SHOTS, ShotClip, define_clip, draw
from envs.synthetic.world import publish

LETTERS = "ABCD"
QUESTIONS: Mapping[str, tuple[str, tuple[str, ...]]] = {  # kind -> question, options in the order of LETTERS
    "still": ("Where is the black bar?", tuple(DIRECTIONS)),
    "order": ("Which colour comes last?", tuple(COLOURS)),
    "motion": ("Which way does the white square move?", tuple(DIRECTIONS)),
}
CHANCE = 1 / len(LETTERS)
FORMAT_VERSION = 1  # part of the fingerprint: raise it when drawing or rows change


@dataclass(frozen=True, slots=True)
class ShotWorld:
    """What is rendered. Two equal worlds give equal pixels; those that differ in the disturbance alone, equal clips.

    Raises:
        ValueError: too few frames for the shots, an odd size, or no such disturbance.
    """

    clips: int = 64
    num_frames: int = 24
    native_fps: int = 6
    size: int = 56  # pixels, square
    seed: int = 0
    disturbance: str = ""  # of DISTURBANCES; empty: the footage as it is
    strength: float = 0.0  # in the disturbance's own unit

    def __post_init__(self) -> None:
        if self.num_frames < SHOTS * SHORTEST_SHOT:
            raise ValueError(f"num_frames must be at least {SHOTS * SHORTEST_SHOT}, got {self.num_frames}")
        if self.size < 28 or self.size % 2:
            raise ValueError(f"size must be even and at least 28 pixels, got {self.size}")
        if self.disturbance and self.disturbance not in DISTURBANCES:
            raise ValueError(f"disturbance={self.disturbance!r} is none of {', '.join(DISTURBANCES)}")

    @property
    def fingerprint(self) -> str:
        """Short stable name of the rendered world."""
        described = json.dumps([FORMAT_VERSION, asdict(self)], sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()[:12]

    def disturbed(self, disturbance: str, strength: float) -> ShotWorld:
        """The same clips under a disturbance."""
        return replace(self, disturbance=disturbance, strength=strength)


def render_shots(world: ShotWorld, folder: Path | str) -> Path:
    """Render into `folder/shots-FINGERPRINT`, or find it there; published by one rename. Returns its rows.json."""
    home = Path(folder).absolute() / f"shots-{world.fingerprint}"
    if not home.is_dir():
        home.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{home.name}-", dir=home.parent))
        try:
            _render_into(draft, world)
            publish(draft, home)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return home / "rows.json"


def define_clips(world: ShotWorld) -> list[ShotClip]:
    """The clips of a world: the answers of each kind dealt from shuffled decks, everything else drawn."""
    decks = [_deck(options, np.random.default_rng([world.seed, 0, i])) for i, (_, options) in _numbered_questions()]
    clips = []
    for index in range(world.clips):
        edge, last, direction = (next(deck) for deck in decks)
        rng = np.random.default_rng([world.seed, 1, index])
        clips.append(define_clip(world.num_frames, world.size, last=last, edge=edge, direction=direction, rng=rng))
    return clips


def clip_pixels(world: ShotWorld, clip: ShotClip, index: int) -> np.ndarray:
    """THWC uint8 RGB, disturbed as the world says."""
    frames_THWC = draw(clip)
    if not world.disturbance:
        return frames_THWC
    rng = np.random.default_rng([world.seed, 2, index])
    return DISTURBANCES[world.disturbance](frames_THWC, world.strength, rng)


def clip_row(world: ShotWorld, clip: ShotClip, index: int, video: str) -> dict[str, Any]:
    """A conversation about the clip: its questions in random order, a letter to each; `kinds` says which is which."""
    answers = {"still": clip.bar_edge, "order": clip.colours[-1], "motion": clip.motion.direction}
    kinds = [str(kind) for kind in np.random.default_rng([world.seed, 3, index]).permutation(list(QUESTIONS))]
    turns = []
    for place, kind in enumerate(kinds):
        question, options = QUESTIONS[kind]
        listed = " ".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True))
        head = "<video>\n" if place == 0 else ""
        turns.append({"from": "human", "value": f"{head}{question} {listed}"})
        turns.append({"from": "gpt", "value": LETTERS[options.index(answers[kind])]})
    return {"id": video, "video": video, "conversations": turns, "kinds": kinds}


def _render_into(folder: Path, world: ShotWorld) -> None:
    rows = []
    for index, clip in enumerate(define_clips(world)):
        video = f"{index:05d}.mp4"
        write_mp4(clip_pixels(world, clip, index), world.native_fps, folder / video)
        rows.append(clip_row(world, clip, index, video))
    (folder / "rows.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


def _numbered_questions() -> Iterator[tuple[int, tuple[str, tuple[str, ...]]]]:
    return enumerate(QUESTIONS.values())


def _deck(options: tuple[str, ...], rng: np.random.Generator) -> Iterator[str]:
    """The options over and over, each round in a new order: any world is as balanced as its number of clips allows."""
    while True:
        yield from (options[place] for place in rng.permutation(len(options)))
