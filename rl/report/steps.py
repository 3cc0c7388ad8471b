"""The trajectories of one step, compact: a small index for the list of groups, details for one that is opened.

    records (rl.tracking.records, one line per trajectory) -> ReportStep

The index says enough to list, filter and plot every group; details (turns, tokens, log-probs, frame times) are
compressed by themselves and unpacked in the browser when they are looked at.

Legend: G siblings of a group · T tokens of a turn, or frames of a block (said where it stands).
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rl.report.run_files import Broken, StepFile, as_number, finite

NAT = 100_000  # log-probs travel as whole hundred-thousandths of a nat
MS = 1000  # times as whole milliseconds
ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
SHORT_ANSWER = 60  # characters of an answer in a list


@dataclass(frozen=True, slots=True)
class FrameNeeds:
    """What one trajectory shows: frames of a clip by presentation time in milliseconds."""

    video: str
    times_ms: frozenset[int]


@dataclass(frozen=True, slots=True)
class ReportStep:
    """The records of a step, or of an evaluation, as the page needs them."""

    id: str
    index: dict[str, Any]  # {id, kind, step, groups: [{task, video, siblings: [...]}]}
    full: bytes  # details with one number per token, gzip of JSON
    plain: bytes  # details without them
    needs: tuple[FrameNeeds, ...]  # one per trajectory, in the order of the records
    broken: tuple[Broken, ...]


def compact(file: StepFile, lines: Iterable[tuple[dict[str, Any] | Broken, int]]) -> ReportStep:
    """Compact the records of a file. A record that is not one is left out and listed in `broken`."""
    place = f"{'trajectories' if file.kind == 'train' else 'held_out'}/{file.path.name}"
    records, broken = [], []
    for line, number in lines:
        if isinstance(line, Broken):
            broken.append(line)
            continue
        try:
            records.append(_Record(line))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            reason = f"no {error.args[0]!r} in it" if isinstance(error, KeyError) else str(error)[:160]
            broken.append(Broken(f"{place}:{number}", f"is not a trajectory's record ({reason})"))
    groups = _groups(records)
    index = {
        "id": file.id,
        "kind": file.kind,
        "step": file.step,
        "groups": [group[0].group_index | {"siblings": [record.index for record in group]} for group in groups],
    }
    return ReportStep(
        id=file.id,
        index=index,
        full=packed([_details(group, per_token=True) for group in groups]),
        plain=packed([_details(group, per_token=False) for group in groups]),
        needs=tuple(FrameNeeds(record.video, record.times_ms) for group in groups for record in group),
        broken=tuple(broken),
    )


def packed(data: Any) -> bytes:
    """gzip of JSON, the same bytes for the same data."""
    return gzip.compress(json.dumps(data, separators=(",", ":")).encode("ascii"), compresslevel=9, mtime=0)


class _Record:
    """One record, checked: what the index, the details and the thumbnails take from it.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, IndexError: it is not a trajectory's record.
    """

    def __init__(self, record: dict[str, Any]) -> None:
        task, rewards = record["task"], record["rewards"]
        self.sibling = int(record.get("sibling", 0))
        self.group = None if record.get("group") is None else int(record["group"])
        self.video = str(task["video"])
        self.task_id = str(task["id"])
        self.coarse_frames = _frames(record.get("coarse_frames", record.get("opening")))  # "opening": until 0.3.0
        self.turns = [_turn(turn) for turn in record["turns"]]
        self.duration_s = finite(record.get("duration_s"))
        text = str(record.get("text", ""))
        self.shared = {"coarse_frames": self.coarse_frames, "duration_s": self.duration_s}
        self.own = {"text": text, "note": str(record.get("note", "")), **_rewards(rewards)}
        self.group_index = {
            "task": self.task_id,
            "video": self.video,
            "question": str(task.get("question", "")),
            "answer": str(task.get("answer", "")),
            "evidence": _span(task.get("evidence_s")),
            "evidence_fps": finite(task.get("evidence_fps")),
            "duration_s": self.duration_s,
        }
        calls = [turn["call"] for turn in self.turns if turn["call"] is not None]
        answers = ANSWER.findall(text)
        self.index = {
            "sibling": self.sibling,
            "sampling": self.own.get("sampling"),
            "reasoning": self.own.get("reasoning"),
            "failed": self.own.get("failed", {}).get("cause"),
            "stop": str(record["stop"]),
            "calls": [_window(call) for call in calls],
            "answer": answers[-1].strip()[:SHORT_ANSWER] if answers else None,
        }

    @property
    def times_ms(self) -> frozenset[int]:
        """Presentation times of all its frames."""
        blocks = [self.coarse_frames, *(turn["frames"] for turn in self.turns)]
        return frozenset(time for block in blocks if block is not None for time in block["t"])


def _groups(records: Sequence[_Record]) -> list[list[_Record]]:
    """Siblings together, in the order of the file: by group, or, in records without one, while siblings count up."""
    groups: list[list[_Record]] = []
    for record in records:
        last = groups[-1][-1] if groups else None
        starts_again = last is not None and record.group is None and record.sibling <= last.sibling
        if last is None or starts_again or (record.group, record.task_id) != (last.group, last.task_id):
            groups.append([record])
        else:
            groups[-1].append(record)
    return groups


def _details(group: Sequence[_Record], *, per_token: bool) -> dict[str, Any]:
    siblings = []
    for record in group:
        turns = record.turns if per_token else [_without_tokens(turn) for turn in record.turns]
        siblings.append(record.own | {"turns": turns})
    return group[0].shared | {"siblings": siblings}


def _turn(turn: dict[str, Any]) -> dict[str, Any]:
    compacted = {
        "segment": str(turn["segment"]),
        "context_tokens": int(turn.get("context_tokens", 0)),
        "sampled_tokens": int(turn.get("sampled_tokens", 0)),
        "mean_logprob": finite(turn.get("mean_logprob")),
        "version": finite(turn.get("policy_version")),
        "call": _call(turn.get("call")),
        "frames": _frames(turn.get("frames")),
    }
    if "advantage" in turn:  # absent: the run did not record it; null: not learned from
        compacted["advantage"] = finite(turn["advantage"])
    if "tokens" in turn:
        compacted["tokens"] = [str(token) for token in turn["tokens"]]
    if "logprobs" in turn:
        engine_T, learner_T = _nats(turn, "logprobs"), _nats(turn, "learner_logprobs")
        compacted["engine"] = engine_T
        if engine_T is not None and learner_T is not None:  # differences are small, and small numbers pack well
            pairs = zip(engine_T, learner_T, strict=True)
            compacted["gap"] = [None if None in pair else pair[0] - pair[1] for pair in pairs]
    return compacted


def _without_tokens(turn: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in turn.items() if name not in ("tokens", "engine", "gap")}
    if "tokens" in turn:
        kept["written"] = "".join(turn["tokens"])
    return kept


def _window(call: dict[str, Any]) -> list[float | str | None] | str:
    """[start, end, rate] of what was granted, and of another tool than `span_fps` its name, with null for what it has
    not; or the name of why nothing was granted: "malformed" or "refused"."""
    if "granted" in call:
        named = [call["tool"]] if "tool" in call else []
        return [*(call["granted"] or (None, None)), call.get("granted_fps"), *named]
    return "refused" if "refused" in call else "malformed"


def _call(call: dict[str, Any] | None) -> dict[str, Any] | None:
    if call is None:
        return None
    named = {"tool": str(call["tool"])} if "tool" in call else {}
    for kind in ("malformed", "refused"):
        if kind in call:
            return named | {kind: str(call[kind])}
    if named:
        return named | {
            "granted": _span(call.get("granted_s")),
            "box": _box(call.get("box")),
            "asked_box": _box(call.get("asked_box")),
            "clamped": [str(name) for name in call.get("clamped", ())],
        }
    return {
        "asked": _span(call["asked_s"]),
        "asked_fps": finite(call.get("asked_fps")),
        "granted": _span(call["granted_s"]),
        "granted_fps": finite(call.get("granted_fps")),
        "frames": int(call.get("frames", 0)),
        "clamped": [str(name) for name in call.get("clamped", ())],
    }


def _box(box: Sequence[float] | None) -> list[float] | None:
    """Left, top, right, bottom in thousandths.

    Raises:
        ValueError: it is none.
    """
    if box is None:
        return None
    sides = [as_number(side) for side in box]
    if len(sides) != 4 or not all(isinstance(side, float) for side in sides):
        raise ValueError(f"{box} is no box")
    return sides


def _frames(block: dict[str, Any] | None) -> dict[str, Any] | None:
    if block is None:
        return None
    times_T = [round(float(time) * MS) for time in block["timestamps_s"]]
    scenes = [int(length) for length in block.get("scene_lengths", ())]
    if any(length < 1 for length in scenes) or sum(scenes) not in (0, len(times_T)):
        raise ValueError(f"scenes of {sum(scenes)} frames in a block of {len(times_T)}")
    return {"t": times_T, "scenes": scenes, "h": int(block.get("height", 0)), "w": int(block.get("width", 0))}


def _rewards(rewards: dict[str, Any]) -> dict[str, Any]:
    if "failed" in rewards:
        return {"failed": {name: str(rewards["failed"].get(name, "")) for name in ("term", "cause", "detail")}}
    terms = {str(name): as_number(value) for name, value in rewards.get("terms", {}).items()}
    return {"sampling": finite(rewards["sampling"]), "reasoning": finite(rewards["reasoning"]), "terms": terms}


def _span(span: Sequence[float] | None) -> list[float] | None:
    if span is None:
        return None
    start_s, end_s = (as_number(bound) for bound in span)
    if not isinstance(start_s, float) or not isinstance(end_s, float):
        raise ValueError(f"{span} is not a window in seconds")
    return [start_s, end_s]


def _nats(turn: dict[str, Any], name: str) -> list[int | None] | None:
    """Log-probs of a turn's tokens in whole hundred-thousandths of a nat.

    Raises:
        ValueError: there is not one per token.
    """
    if turn.get(name) is None:
        return None
    numbers_T = turn[name]
    if len(numbers_T) == len(turn.get("tokens", numbers_T)) and all(type(number) is float for number in numbers_T):
        with suppress(ValueError, OverflowError):  # NaN, infinity
            return [round(number * NAT) for number in numbers_T]
    numbers_T = [finite(value) for value in numbers_T]
    if len(numbers_T) != len(turn.get("tokens", numbers_T)):
        raise ValueError(f"{len(numbers_T)} {name} for {len(turn['tokens'])} tokens")
    return [None if number is None else round(number * NAT) for number in numbers_T]
