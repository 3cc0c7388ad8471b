"""The quickstart world: real mp4 clips whose question only a second look can answer, deterministic by seed.

Each clip has an event window, visible in coarse frames, and inside it a brief detail which frames at the coarse rate
(and at twice that rate) miss by construction: it is never on screen at a multiple of half the coarse interval. The row
says where the event is (`gt_span_*`) and the lowest integer rate that shows the detail at any phase (`fps`). There are
three tempos of details, or as many brevities as `detail_fps` lists rates: then a detail stays as long as its rate
needs, hides between two coarse frames, and its event lasts two coarse intervals, whatever the rate.

Question kinds: `colour` (one flash; which colour?), `count` (1-4 flashes; how many?), `order` (two; which first?),
`warmth` (one flash; warm or cold?), and `dot` (a detail too small for coarse frames; envs.synthetic.dots). Two things
set the credit of a look and of an answer against each other: `warmth`, for who saw nothing is right half the time, and
`wrong_labels`, a share of training annotations that are wrong, so that who looked well is told that the answer was bad;
held-out annotations are right.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from envs.synthetic.clip import (
    DETAIL_COLOURS,
    TEMPO_HUES,
    Flash,
    SyntheticClip,
    draw,
    lowest_sufficient_fps,
    shortest_flash,
    write_mp4,
)
from envs.synthetic.dots import DotClip, define_dot_clip, dot_columns, draw_dots, refuse_dots
from envs.synthetic.traces import LETTERS, WARMTH, cold_start_traces, shown_answer

__all__ = ["QuickstartWorld", "WorldFiles", "cold_start_traces", "render_world", "shown_answer", "world_rows"]

Clip = SyntheticClip | DotClip
SPLITS = ("train", "held_out")
QUESTIONS = {
    "colour": "What colour flashes?",
    "count": "How many flashes?",
    "order": "Which colour flashes first?",
    "warmth": "Is the flash warm or cold?",
    "dot": "What colour is the dot?",
}
CHOICES = {
    "colour": tuple(DETAIL_COLOURS),
    "count": ("1", "2", "3", "4"),
    "order": tuple(DETAIL_COLOURS),
    "warmth": ("warm", "cold"),
    "dot": tuple(DETAIL_COLOURS),
}
NUM_FLASHES = {"colour": 1, "order": 2, "warmth": 1}  # count: as many as the answer says
EVENT_STEPS = (1, 2, 3)  # lengths of the event window, in coarse intervals
DETAIL_EVENT_STEPS = 2  # likewise, where rates are listed: the window's length tells nothing of the rate
MIN_EVIDENCE_FRAMES = 5  # in the window at the evidence rate: room for scenes before, during and after a flash
FORMAT_VERSION = 2  # part of the fingerprint: raise it when drawing or rows change
ADDED = {
    "wrong_labels": 0.0,
    "look_frames": 0,
    "detail_fps": (),
    "dot_px": 8,
    "dot_mark": 4,
    "dot_places": 0,
}  # later than that: no part of it where they leave everything as it was


@dataclass(frozen=True, slots=True)
class QuickstartWorld:
    """What is rendered. Two equal worlds give equal pixels.

    Raises:
        ValueError: the native rate is not an even multiple of the coarse one, or too low for a hidden detail.
    """

    train_clips: int = 192
    held_out_clips: int = 64
    duration_s: float = 8.0
    native_fps: float = 12.0
    size: int = 56  # pixels, square
    seed: int = 0
    question_kinds: tuple[str, ...] = ("colour",)
    coarse_fps: float = 1.0  # the rate at which the detail must stay invisible
    shuffle_options: bool = True  # letters in random order per clip; False: always the same
    wrong_labels: float = 0.0  # share of training annotations that are wrong; a larger share has those of a smaller one
    # events are no longer than so many frames at the rate they need, so that one look of as many can show all of them,
    # and a wider one may miss the flash; 0: any
    look_frames: int = 0
    detail_fps: tuple[float, ...] = ()  # needed rates, ascending, a hue of the border each; empty: the three tempos
    dot_px: int = 8  # of kind dot: its side, and that of the cells which average its colour away
    dot_mark: int = 4  # cells of the mark around it, a side
    dot_places: int = 0  # of a mark, along either side of the frame; 0: as many as fit

    def __post_init__(self) -> None:
        object.__setattr__(self, "question_kinds", tuple(self.question_kinds))
        object.__setattr__(self, "detail_fps", tuple(map(float, self.detail_fps)))
        unknown = sorted(set(self.question_kinds) - set(QUESTIONS))
        if unknown or not self.question_kinds:
            raise ValueError(f"question_kinds: {unknown or 'none given'}; known: {', '.join(sorted(QUESTIONS))}")
        if not 0 <= self.wrong_labels <= 1:
            raise ValueError(f"wrong_labels must be a share, 0..1, got {self.wrong_labels:g}")
        slots_per_s = 2 * self.coarse_fps
        if self.native_fps % 1 or self.native_fps % slots_per_s or self.native_fps < 4 * slots_per_s:
            raise ValueError(
                f"native_fps must be a whole multiple of 2 * coarse_fps ({slots_per_s:g}), at least 4 times it, "
                f"got {self.native_fps:g}"
            )
        if self.size < 16 or self.size % 2:
            raise ValueError(f"size must be even and at least 16 pixels, got {self.size}")
        if (self.duration_s * self.coarse_fps) % 1 or self.duration_s * self.coarse_fps < EVENT_STEPS[-1]:
            raise ValueError(f"duration_s must be a whole number (>= {EVENT_STEPS[-1]}) of coarse intervals")
        if "dot" in self.question_kinds:
            refuse_dots(self.size, self.dot_px, self.dot_mark, self.dot_places)
        if self.detail_fps:
            _refuse_details(self)
        steps = DETAIL_EVENT_STEPS if self.detail_fps else EVENT_STEPS[0]
        shortest = math.ceil(steps * max(self.tempo_fps) / self.coarse_fps)
        if self.look_frames and self.look_frames < max(shortest, MIN_EVIDENCE_FRAMES):
            raise ValueError(
                f"look_frames must be 0 or at least {max(shortest, MIN_EVIDENCE_FRAMES)}, frames of the shortest event "
                f"at the rate it needs, got {self.look_frames}"
            )

    @property
    def slots_per_step(self) -> int:
        """Slots in a coarse interval: a flash that needs less than twice the coarse rate takes a whole one."""
        return 1 if self.detail_fps else 2

    @property
    def slot_frames(self) -> int:
        """Native frames of a slot, at whose first no flash is on screen."""
        return int(self.native_fps / (self.slots_per_step * self.coarse_fps))

    @property
    def tempo_frames(self) -> tuple[int, ...]:
        """Length of a flash in native frames, from slow to fast."""
        if self.detail_fps:
            return tuple(shortest_flash(fps, self.native_fps) for fps in self.detail_fps)
        return self.slot_frames - 1, self.slot_frames // 2, self.slot_frames // 3

    @property
    def tempo_fps(self) -> tuple[float, ...]:
        """The lowest rate, as listed or as an integer, at which a grid shows a flash of each tempo at any phase."""
        return self.detail_fps or tuple(lowest_sufficient_fps(n, int(self.native_fps)) for n in self.tempo_frames)

    @property
    def fingerprint(self) -> str:
        """Short stable name of the rendered world."""
        named = {name: value for name, value in asdict(self).items() if name not in ADDED or value != ADDED[name]}
        described = json.dumps([FORMAT_VERSION, named], sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class WorldFiles:
    """A rendered world on disk. Video paths in the rows are relative to `folder`."""

    folder: Path
    train_jsonl: Path
    held_out_jsonl: Path


def find_world(world: QuickstartWorld, folder: Path | str) -> WorldFiles | None:
    """The files of a world that has been rendered into `folder`; None if it has not."""
    home = Path(folder).absolute() / f"quickstart-{world.fingerprint}"
    return WorldFiles(home, home / "train.jsonl", home / "held_out.jsonl") if home.is_dir() else None


def render_world(
    world: QuickstartWorld, folder: Path | str, progress: Callable[[int, int], None] | None = None, workers: int = 1
) -> WorldFiles:
    """Render into `folder/quickstart-FINGERPRINT`, or find it there; published by one rename, so never half there.

    Args:
        progress: called with (clips done, clips in all).
        workers: rendering processes; 1 renders in this one.
    """
    home = Path(folder).absolute() / f"quickstart-{world.fingerprint}"
    if not home.is_dir():
        home.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{home.name}-", dir=home.parent))
        try:
            _render_into(draft, world, progress, workers)
            publish(draft, home)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return WorldFiles(home, home / "train.jsonl", home / "held_out.jsonl")


def world_rows(world: QuickstartWorld, split: str) -> list[dict[str, Any]]:
    """The rows of a split in DM-RL format, with the clip's own definition under extra keys."""
    return [row for row, _ in _define_split(world, split)]


def _refuse_details(world: QuickstartWorld) -> None:
    """
    Raises:
        ValueError: rates that details cannot be made for.
    """
    rates = world.detail_fps
    if sorted(set(rates)) != list(rates) or len(rates) > len(TEMPO_HUES):
        raise ValueError(f"detail_fps must be at most {len(TEMPO_HUES)} rates in ascending order, got {list(rates)}")
    if not world.coarse_fps < rates[0] <= rates[-1] <= world.native_fps:
        raise ValueError(
            f"detail_fps must be above coarse_fps ({world.coarse_fps:g}), which would show the detail, and at most "
            f"native_fps ({world.native_fps:g}), got {list(rates)}"
        )
    if uneven := [fps for fps in rates if (DETAIL_EVENT_STEPS * fps / world.coarse_fps) % 1]:
        raise ValueError(
            f"detail_fps: {uneven[0]:g} gives no whole number of frames over an event of {DETAIL_EVENT_STEPS} coarse "
            f"intervals: a multiple of {world.coarse_fps / DETAIL_EVENT_STEPS:g} does"
        )
    if world.tempo_frames[0] >= world.slot_frames:
        raise ValueError(f"detail_fps: a detail for {rates[0]:g} fps fits between no two coarse frames")
    if "count" in world.question_kinds:
        raise ValueError(f"detail_fps: up to {CHOICES['count'][-1]} flashes of kind count do not fit into its events")


def _define_split(world: QuickstartWorld, split: str) -> list[tuple[dict[str, Any], Clip]]:
    """Rows and clips of a split. Each kind's letters and choices are dealt from shuffled full decks: balanced."""
    count = world.train_clips if split == "train" else world.held_out_clips
    split_seed = [world.seed, SPLITS.index(split)]
    decks = {
        kind: _deal(len(CHOICES[kind]), np.random.default_rng([*split_seed, 0, i]))
        for i, kind in enumerate(world.question_kinds)
    }
    defined = []
    for index in range(count):
        kind = world.question_kinds[index % len(world.question_kinds)]
        letter, choice = next(decks[kind])
        define = define_dot_clip if kind == "dot" else _define_clip
        clip = define(world, kind, CHOICES[kind][choice], np.random.default_rng([*split_seed, 1, index]))
        letter = letter if world.shuffle_options else choice
        options = _options(kind, choice, letter, np.random.default_rng([*split_seed, 2, index]), world.shuffle_options)
        if split == "train":
            careless = np.random.default_rng([*split_seed, 3, index])
            letter = _annotated(letter, len(options), world.wrong_labels, careless)
        defined.append((_row(world, clip, kind, options, letter, f"{split}/{index:05d}.mp4"), clip))
    return defined


def _deal(n: int, rng: np.random.Generator) -> Iterable[tuple[int, int]]:
    """Endless (letter, choice) pairs of n choices, each of the n * n once per deck; any n in a row hold each letter
    once."""
    while True:
        letters_by_round = [rng.permutation(n) for _ in range(n)]
        first_choice_of = rng.permutation(n)
        for turn, letters in enumerate(letters_by_round):
            yield from ((int(letter), int(first_choice_of[(letter + turn) % n])) for letter in letters)


def _annotated(letter: int, options: int, wrong_labels: float, rng: np.random.Generator) -> int:
    """What a careless annotator wrote: in this share of cases another letter than the right one."""
    if rng.random() >= wrong_labels:
        return letter
    return int(rng.choice([other for other in range(options) if other != letter]))


def _define_clip(world: QuickstartWorld, kind: str, answer: str, rng: np.random.Generator) -> SyntheticClip:
    slot_frames, native_fps = world.slot_frames, int(world.native_fps)
    num_flashes = NUM_FLASHES.get(kind) or int(answer)
    longest = (
        slot_frames if num_flashes == 1 and kind != "count" else slot_frames // 2
    )  # the tempo must not tell the count
    tempo = int(rng.choice([i for i, frames in enumerate(world.tempo_frames) if frames <= longest]))
    flash_frames = world.tempo_frames[tempo]
    steps = int(rng.choice(_event_lengths(world, kind, flash_frames)))
    start_step = int(rng.integers(0, round(world.duration_s * world.coarse_fps) - steps + 1))
    first_slot = world.slots_per_step * start_step
    offset = int(rng.integers(1, slot_frames - flash_frames + 1))  # one rhythm: gaps are never shorter than flashes
    slots = np.sort(rng.choice(world.slots_per_step * steps, size=num_flashes, replace=False)) + first_slot
    return SyntheticClip(
        num_frames=round(world.duration_s * native_fps),
        native_fps=native_fps,
        size=world.size,
        event_first_frame=first_slot * slot_frames,
        event_end_frame=(first_slot + world.slots_per_step * steps) * slot_frames,
        tempo=tempo,
        flashes=tuple(
            Flash(int(slot) * slot_frames + offset, flash_frames, colour)
            for slot, colour in zip(slots, _flash_colours(kind, answer, num_flashes, rng), strict=True)
        ),
        background_seed=int(rng.integers(2**31)),
    )


def _event_lengths(world: QuickstartWorld, kind: str, flash_frames: int) -> list[int]:
    """Window lengths, in coarse intervals, that hold enough frames at the evidence rate and any count of flashes."""
    if world.detail_fps:
        return [DETAIL_EVENT_STEPS]
    fps = lowest_sufficient_fps(flash_frames, int(world.native_fps))
    enough = [steps for steps in EVENT_STEPS if steps * fps / world.coarse_fps >= MIN_EVIDENCE_FRAMES]
    if world.look_frames:
        enough = [steps for steps in enough if steps * fps / world.coarse_fps <= world.look_frames] or [1]
    if kind == "count":
        enough = [steps for steps in enough if 2 * steps >= len(CHOICES["count"])]
    return enough or [EVENT_STEPS[-1]]


def _flash_colours(kind: str, answer: str, num_flashes: int, rng: np.random.Generator) -> list[str]:
    colours = sorted(DETAIL_COLOURS)
    if kind == "count":
        return [str(rng.choice(colours))] * num_flashes
    if kind == "warmth":
        return [str(rng.choice([colour for colour in colours if WARMTH[colour] == answer]))]
    others = [colour for colour in colours if colour != answer]
    return [answer, str(rng.choice(others))][:num_flashes]


def _options(kind: str, choice: int, letter: int, rng: np.random.Generator, shuffle: bool) -> list[str]:
    """The choices in the order of their letters, the right one at `letter`."""
    choices = list(CHOICES[kind])
    if not shuffle:
        return choices
    right = choices.pop(choice)
    shuffled = [choices[i] for i in rng.permutation(len(choices))]
    return [*shuffled[:letter], right, *shuffled[letter:]]


def _row(world: QuickstartWorld, clip: Clip, kind: str, options: list[str], letter: int, video: str) -> dict[str, Any]:
    start_s, end_s = clip.event_span_s
    listed = " ".join(f"{name} {option}" for name, option in zip(LETTERS, options, strict=False))
    return {
        "prompt": f"<video>\n{QUESTIONS[kind]} {listed}",
        "video": video,
        "answer": LETTERS[letter],
        "fps": world.coarse_fps if kind == "dot" else world.tempo_fps[clip.tempo],
        "gt_span_start": start_s,
        "gt_span_end": end_s,
        "kind": kind,
        "options": options,
        "duration_s": clip.num_frames / clip.native_fps,
        "native_fps": clip.native_fps,
        **(dot_columns(clip) if isinstance(clip, DotClip) else {"flashes_s": _flashes_s(clip)}),
        **({"rates_fps": list(world.detail_fps)} if world.detail_fps else {}),
    }


def _flashes_s(clip: SyntheticClip) -> list[list[float | str]]:
    return [
        [f.first_frame / clip.native_fps, (f.first_frame + f.num_frames) / clip.native_fps, f.colour]
        for f in clip.flashes
    ]


def _render_into(
    folder: Path, world: QuickstartWorld, progress: Callable[[int, int], None] | None, workers: int
) -> None:
    jobs: list[tuple[Clip, Path]] = []
    for split in SPLITS:
        (folder / split).mkdir()
        defined = _define_split(world, split)
        rows = "".join(json.dumps(row) + "\n" for row, _ in defined)
        (folder / f"{split}.jsonl").write_text(rows, encoding="utf-8")
        jobs += [(clip, folder / row["video"]) for row, clip in defined]
    for done, _ in enumerate(_render_all(jobs, workers), start=1):
        if progress is not None:
            progress(done, len(jobs))


def _render_all(jobs: Sequence[tuple[Clip, Path]], workers: int) -> Iterable[None]:
    if workers <= 1:
        yield from (_render(clip, path) for clip, path in jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for rendered in as_completed([pool.submit(_render, clip, path) for clip, path in jobs]):
            yield rendered.result()


def _render(clip: Clip, path: Path) -> None:
    write_mp4(draw_dots(clip) if isinstance(clip, DotClip) else draw(clip), clip.native_fps, path)


def publish(draft: Path, home: Path) -> None:
    """Rename into place; if someone else was faster, theirs is the same world."""
    draft.chmod(0o755)
    try:
        os.rename(draft, home)
    except OSError:
        if not home.is_dir():
            raise
