"""A trajectory as a short video: what the policy saw, when it looked again and where, and what it wrote meanwhile.

First the coarse frames; then turn by turn its text, with the window it asked for on the bar of the clip's time, and the
frames it was given for that. Pictures are the pixels that the policy saw, no finer ones. One animated GIF: TensorBoard
and Weights & Biases both show it as it is.

Legend: T frames of a block · H W pixels · C colours (RGB).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, MARGIN = 640, 400, 12
PICTURE = 280  # pixels of a picture's box, both ways
BAR_TOP, BAR_HEIGHT = 344, 18
MOST_QUESTION_LINES, MOST_TEXT = 5, 4000  # shown; characters of a text that are broken into lines, from its end
LINE = 16  # pixels from one line of text to the next
MOST_FRAMES = 24  # of a block that are shown, spread evenly
COARSE_MS, LOOK_MS, TEXT_MS, END_MS = 200, 250, 1400, 3000  # for which a picture stays
COLOURS = 96  # of a picture of the GIF

PAPER, INK, SOFT = (250, 250, 248), (31, 41, 51), (110, 120, 130)
COARSE, LOOK, EVIDENCE = (97, 110, 124), (225, 112, 32), (56, 142, 90)
SEGMENT_INK = {"sampling": (24, 90, 157), "reasoning": INK}


_Text = list[tuple[str, tuple[int, int, int]]]  # lines and their colours


@dataclass(frozen=True, slots=True)
class SampleVideo:
    """An animated GIF of one trajectory."""

    caption: str
    gif: bytes
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class _Moment:
    """One picture of the GIF."""

    pixels_HWC: np.ndarray | None
    time_s: float | None  # of the frame in the clip
    label: str  # of the frame
    colour: tuple[int, int, int]
    turns: int  # that have been written by now
    looks: int  # that are marked on the bar
    milliseconds: int
    box: tuple[float, ...] | None = None  # of the frame, in thousandths: left, top, right, bottom


def sample_video(record: Mapping[str, Any], blocks: Sequence[np.ndarray | None]) -> SampleVideo:
    """Draw a trajectory.

    Args:
        record: as in rl.tracking.records, with its tokens.
        blocks: uint8 THWC pixels of its coarse frames (None: the video could not be read), then of the frames that each
            of its turns begins with (None: it begins with none).
    Raises:
        ValueError: the blocks are not those of the record.
    """
    moments, texts = list(_moments(record, blocks)), _texts(record)
    pictures = [_draw(record, texts, moment).quantize(COLOURS, Image.Quantize.FASTOCTREE) for moment in moments]
    written = io.BytesIO()
    first, *others = pictures
    durations = [moment.milliseconds for moment in moments]
    first.save(written, "GIF", save_all=True, append_images=others, duration=durations, loop=0)
    return SampleVideo(caption(record), written.getvalue(), WIDTH, HEIGHT)


def caption(record: Mapping[str, Any]) -> str:
    """Task, windows and rewards of a trajectory in one line."""
    asked = [_told_call(turn["call"]) for turn in record["turns"] if turn["call"]]
    parts = [_plain(record["task"]["id"]), *asked, f"answer expected: {_plain(record['task']['answer'])}"]
    return " · ".join([*parts, _told_rewards(record["rewards"])])


def _moments(record: Mapping[str, Any], blocks: Sequence[np.ndarray | None]) -> Iterator[_Moment]:
    turns = record["turns"]
    listed = [record["coarse_frames"], *(turn["frames"] for turn in turns)]
    if [None if block is None else len(block["timestamps_s"]) for block in listed] != [
        None if block is None else len(block) for block in blocks
    ]:
        raise ValueError("the pixels are not those of the record")
    shown = None
    for shown in _frames(listed[0], blocks[0], "coarse", COARSE, 0, 0, COARSE_MS):
        yield shown
    looks = 0
    for index, turn in enumerate(turns):
        for shown in _frames(listed[index + 1], blocks[index + 1], f"look {looks}", LOOK, index, looks, LOOK_MS):
            yield shown
        looks += turn["call"] is not None and turn["call"].get("granted_s") is not None
        last = index == len(turns) - 1
        yield _zoomed(turn["call"], listed[0], blocks[0], index + 1, looks) or _Moment(
            None if shown is None else shown.pixels_HWC,
            None if shown is None else shown.time_s,
            "" if shown is None else shown.label,
            COARSE if shown is None else shown.colour,
            index + 1,
            looks,
            END_MS if last else TEXT_MS,
        )
    if not turns and shown is None:
        yield _Moment(None, None, "no frames", COARSE, 0, 0, END_MS)


def _zoomed(
    call: Mapping[str, Any] | None,
    coarse: Mapping[str, Any] | None,
    pixels_THWC: np.ndarray | None,
    turns: int,
    looks: int,
) -> _Moment | None:
    """The box of a granted call in the coarse frame nearest to its moment."""
    if not call or not call.get("box") or not call.get("granted_s") or coarse is None or pixels_THWC is None:
        return None
    time_s = float(call["granted_s"][0])
    nearest = int(np.abs(np.asarray(coarse["timestamps_s"]) - time_s).argmin())
    return _Moment(pixels_THWC[nearest], time_s, _told_call(call), LOOK, turns, looks, TEXT_MS, tuple(call["box"]))


def _frames(
    block: Mapping[str, Any] | None,
    pixels_THWC: np.ndarray | None,
    name: str,
    colour: tuple[int, int, int],
    turns: int,
    looks: int,
    milliseconds: int,
) -> Iterator[_Moment]:
    if block is None or pixels_THWC is None:
        return
    times_T = block["timestamps_s"]
    count = min(len(times_T), MOST_FRAMES)
    for place in np.linspace(0, len(times_T) - 1, count).round().astype(int):
        label = f"{name}: {times_T[place]:.2f} s, frame {place + 1} of {len(times_T)}"
        yield _Moment(pixels_THWC[place], times_T[place], label, colour, turns, looks, milliseconds)


def _draw(record: Mapping[str, Any], texts: Sequence[_Text], moment: _Moment) -> Image.Image:
    canvas = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    pen = ImageDraw.Draw(canvas)
    title = f"{_told_rewards(record['rewards'])}, expected: {_plain(record['task']['answer'])}"
    pen.text((MARGIN, 8), _cut(title, WIDTH - 2 * MARGIN), SOFT, _font())
    box = (MARGIN, 30, MARGIN + PICTURE, 30 + PICTURE)
    if moment.pixels_HWC is not None:
        picture = Image.fromarray(np.ascontiguousarray(moment.pixels_HWC))
        scale = PICTURE / max(picture.size)
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)
        place = box[0] + (PICTURE - size[0]) // 2, box[1] + (PICTURE - size[1]) // 2
        canvas.paste(picture, place)
        edge = (place[0] - 3, place[1] - 3, place[0] + size[0] + 2, place[1] + size[1] + 2)
        pen.rectangle(edge, outline=moment.colour, width=3)
        if moment.box is not None:
            corners = [place[side % 2] + part / 1000 * size[side % 2] for side, part in enumerate(moment.box)]
            pen.rectangle(corners, outline=LOOK, width=2)
    pen.text((MARGIN, box[3] + 8), moment.label, moment.colour, _font())
    _write(pen, texts, moment)
    _draw_bar(pen, record, moment)
    return canvas


def _texts(record: Mapping[str, Any]) -> list[_Text]:
    """The question, then what each turn wrote, broken into lines."""
    room = WIDTH - PICTURE - 3 * MARGIN - 6
    question = [(line, SOFT) for line in _lines(record["task"]["question"], room)][:MOST_QUESTION_LINES]
    said = [
        [(line, SEGMENT_INK.get(turn["segment"], INK)) for line in _lines("".join(turn["tokens"]), room)]
        for turn in record["turns"]
    ]
    return [question, *said]


def _write(pen: ImageDraw.ImageDraw, texts: Sequence[_Text], moment: _Moment) -> None:
    """The question and the turns so far; where they do not fit, the end of them."""
    question, *turns = texts
    said = [line for turn in turns[: moment.turns] for line in turn]
    fits = (BAR_TOP - 30) // LINE - len(question) - 1
    for index, (line, ink) in enumerate([*question, ("", INK), *said[-fits:]]):
        pen.text((2 * MARGIN + PICTURE + 6, 28 + index * LINE), line, ink, _font())


def _draw_bar(pen: ImageDraw.ImageDraw, record: Mapping[str, Any], moment: _Moment) -> None:
    """The clip's time: evidence, windows that were asked for and granted, where frames are from, where this one is."""
    duration_s = max(float(record["duration_s"] or 0.0), 1e-3)

    def at(time_s: float) -> float:
        return MARGIN + min(max(time_s / duration_s, 0.0), 1.0) * (WIDTH - 2 * MARGIN)

    bottom = BAR_TOP + BAR_HEIGHT
    pen.rectangle((MARGIN, BAR_TOP, WIDTH - MARGIN, bottom), fill=(226, 229, 233))
    evidence = record["task"]["evidence_s"]
    for start_s, end_s in [*([evidence] if evidence else []), *record["task"].get("further_evidence_s", ())]:
        pen.rectangle((at(start_s), bottom - 5, at(end_s), bottom), fill=EVIDENCE)
    for time_s in (record["coarse_frames"] or {}).get("timestamps_s", ()):
        pen.line((at(time_s), BAR_TOP, at(time_s), BAR_TOP + 4), fill=COARSE)
    granted = [turn["call"] for turn in record["turns"] if turn["call"] and turn["call"].get("granted_s")]
    for call in granted[: moment.looks]:
        pen.rectangle((at(call["granted_s"][0]), BAR_TOP + 4, at(call["granted_s"][1]), bottom - 6), fill=LOOK)
        asked_s = call.get("asked_s", call["granted_s"])  # of other tools than span_fps it is no window
        pen.rectangle((at(asked_s[0]), BAR_TOP - 3, at(asked_s[1]), bottom + 3), outline=LOOK, width=2)
    if moment.time_s is not None:
        pen.line((at(moment.time_s), BAR_TOP - 6, at(moment.time_s), bottom + 6), fill=INK, width=2)
    pen.text((MARGIN, bottom + 8), "0 s", SOFT, _font())
    legend, place = [("evidence", EVIDENCE), ("asked and granted", LOOK)], WIDTH // 2 - 90
    for word, colour in legend:
        pen.rectangle((place, bottom + 12, place + 8, bottom + 20), fill=colour)
        pen.text((place + 13, bottom + 8), word, SOFT, _font())
        place += 26 + round(_font().getlength(word))
    end = f"{duration_s:.1f} s"
    pen.text((WIDTH - MARGIN - _font().getlength(end), bottom + 8), end, SOFT, _font())


def _told_call(call: Mapping[str, Any]) -> str:
    if "granted_s" not in call:
        return "call refused" if "refused" in call else "call malformed"
    if "tool" in call:
        where = f" {' '.join(f'{side:g}' for side in call['box'])}" if call.get("box") else ""
        return f"{call['tool']}{where} at {call['granted_s'][0]:g} s" if call.get("granted_s") else call["tool"]
    (start_s, end_s), rate = call["asked_s"], call["asked_fps"]
    return f"asked {start_s:g} - {end_s:g} s at {rate:g} fps"


def _told_rewards(rewards: Mapping[str, Any]) -> str:
    if "failed" in rewards:
        return f"no reward: {_plain(rewards['failed']['term'])}, {_plain(rewards['failed']['cause'])}"
    retrieval = "-" if rewards["sampling"] is None else f"{float(rewards['sampling']):.2f}"
    return f"reward: retrieval {retrieval}, answer {float(rewards['reasoning']):.2f}"


def _lines(text: str, room: float) -> list[str]:
    """Text broken where it must be, at spaces if there are any."""
    lines, line = [], ""
    for word in _plain(text)[-MOST_TEXT:].split(" "):
        if line and _font().getlength(f"{line} {word}") <= room:
            line = f"{line} {word}"
            continue
        lines += [line] if line else []
        line = word
        while _font().getlength(line) > room:
            kept = len(_cut(line, room))
            lines.append(line[:kept])
            line = line[kept:]
    return [*lines, line]


def _cut(text: str, room: float) -> str:
    """As much of a text as fits; a character at least."""
    count = len(text)
    while count > 1 and _font().getlength(text[:count]) > room:
        count -= max(1, count // 16)
    return text[: max(count, 1)]


def _plain(text: Any) -> str:
    """On one line, without what no font can draw."""
    return " ".join("".join(mark if mark.isprintable() else " " for mark in str(text)).split())


@cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(13)
