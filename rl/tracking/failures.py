"""failures.jsonl: what could not be scored or decoded, each cause once, with the first trajectory it was met on.

| key | is |
|---|---|
| `key` | names the cause: failures of one cause have the same |
| `kind` | `reward` (a reward could not be computed) or `clip` (a clip could not be decoded) |
| `cause` | one line: reward or clip, error, task, place in the reward's code, remedy |
| `count` | trajectories that were masked for it, over the whole run; steps that are repeated count again |
| `first_step`, `last_step` | where it was met, counted as in metrics.jsonl; of an evaluation, the step under way |
| `task`, `group`, `sibling` | of the first trajectory; both numbers from 0, as in trajectories/ |
| `traceback` | from the reward's own code on; empty where nothing was raised |
| `trajectory` | its record (rl.tracking.records), without the numbers per token |

The file is written anew whenever something fails, and stays small: MOST_CAUSES causes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from envs.clip_failures import DistinctClipFailure, clip_failure_line, distinct_clip_failures
from rewards.failures import DistinctFailure, cause_key, cause_line, distinct_failures
from rl.group_summary import LoadGroups, RemoteGroup
from rl.tracking.backlog import Backlog
from rl.tracking.lines import replace_whole
from rl.tracking.records import PiecesOf, records, task_record, write_records
from rl.trajectory import ScoredGroup

FAILURES = "failures.jsonl"  # in a run's folder
MOST_CAUSES = 200  # that are kept; a run with more of them has one problem, not two hundred
PER_TOKEN = ("tokens", "logprobs", "learner_logprobs")


@dataclass(frozen=True, slots=True)
class Failure:
    """One cause: a line of failures.jsonl."""

    key: str
    kind: str  # "reward" | "clip"
    cause: str
    count: int
    first_step: int
    last_step: int
    task: Mapping[str, Any]
    group: int
    sibling: int
    traceback: str
    trajectory: Mapping[str, Any]


class FailureLog:
    """Keeps a run's failures.jsonl up to date, and tells which causes are new to this process."""

    def __init__(self, run_dir: Path, backlog: Backlog, pieces_of: PiecesOf, load: LoadGroups) -> None:
        """
        Args:
            backlog: keeps what a full disk does not take.
            pieces_of: as in rl.tracking.records.
            load: fetches groups with their tokens: of every new cause the first.
        """
        self._path, self._backlog, self._pieces_of, self._load = run_dir / FAILURES, backlog, pieces_of, load
        self._known = {failure.key: failure for failure in read_failures(run_dir)}
        self._counts: dict[str, list[int]] = {}  # of this process, call by call

    def add(self, step: int, scored: Sequence[ScoredGroup[RemoteGroup]]) -> list[Failure]:
        """Count the failures of scored groups; returns those of a cause that is new to this process.

        Beyond MOST_CAUSES a new cause is neither kept nor returned.

        Args:
            step: the one under way, counted from 1.
        Raises:
            UnwrittenError: too many steps in a row could not be written down.
        """
        found = self._found(step, scored)
        for failure in found:
            known = self._known.get(failure.key)
            if known is not None:
                self._known[failure.key] = replace(known, count=known.count + failure.count, last_step=step)
            elif len(self._known) < MOST_CAUSES:
                self._known[failure.key] = failure
        if found:
            lines = [asdict(failure) for failure in self._known.values()]
            write = partial(replace_whole, self._path, lambda draft: write_records(draft, lines))
            self._backlog.write(self._path, step, write)
        kept = [failure for failure in found if failure.key in self._known]
        new = [failure for failure in kept if failure.key not in self._counts]
        for failure in kept:
            self._counts.setdefault(failure.key, []).append(failure.count)
        return new

    def repeated(self) -> list[tuple[Failure, int]]:
        """Causes that `add` has met more than once, with the trajectories masked for each, the most frequent first."""
        totals = {key: sum(counts) for key, counts in self._counts.items() if len(counts) > 1}
        return [(self._known[key], total) for key, total in sorted(totals.items(), key=lambda item: -item[1])]

    def _found(self, step: int, scored: Sequence[ScoredGroup[RemoteGroup]]) -> list[Failure]:
        found = []
        for each in distinct_failures(scored):
            at = each.failure.location
            cause = _Cause("reward", json.dumps(cause_key(each.failure)), cause_line(each.failure))
            found.append(self._failure(cause, each, scored, step, at.traceback if at else ""))
        for clip in distinct_clip_failures([group.group for group in scored]):
            cause = _Cause("clip", clip.failure.path, clip_failure_line(clip.failure))
            found.append(self._failure(cause, clip, scored, step, ""))
        return found

    def _failure(
        self,
        cause: _Cause,
        first: DistinctFailure | DistinctClipFailure,
        scored: Sequence[ScoredGroup[RemoteGroup]],
        step: int,
        traceback: str,
    ) -> Failure:
        key = f"{cause.kind} {cause.key}"
        met = {"cause": cause.line, "count": first.count, "first_step": step, "last_step": step}
        if known := self._known.get(key):  # its trajectory is not fetched again
            return replace(known, **met)
        return Failure(
            key=key,
            kind=cause.kind,
            **met,
            group=first.group,
            sibling=first.sibling,
            traceback=traceback,
            **self._shown(scored[first.group], first.sibling),
        )

    def _shown(self, scored: ScoredGroup[RemoteGroup], sibling: int) -> dict[str, Any]:
        """Task and trajectory as records show them, without the numbers per token; without turns if it was lost."""
        (group,) = self._load([scored.group])
        if group is None:
            nothing = {"text": "", "stop": "", "note": "it was lost with the node it lay on", "turns": []}
            return {"task": task_record(scored.group.task), "trajectory": nothing}
        record = list(records([ScoredGroup(group, scored.rewards_G)], self._pieces_of))[sibling]
        turns = [{name: value for name, value in turn.items() if name not in PER_TOKEN} for turn in record["turns"]]
        shown = {name: record[name] for name in ("text", "stop", "note")}
        return {"task": record["task"], "trajectory": shown | {"turns": turns}}


@dataclass(frozen=True, slots=True)
class _Cause:
    """What failures of one cause have in common."""

    kind: str
    key: str
    line: str


def read_failures(run_dir: Path) -> list[Failure]:
    """The failures of a run, in the order they were first met; a line that is no failure is left out.

    Raises:
        OSError: the file is there and cannot be read.
    """
    path, found = run_dir / FAILURES, []
    if not path.exists():
        return found
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):  # "\n" only: texts may hold U+2028
        try:
            found.append(failure_of(json.loads(line)))
        except (ValueError, TypeError, RecursionError):
            continue
    return found


def failure_of(line: Any) -> Failure:
    """A parsed line of failures.jsonl.

    Raises:
        TypeError: it is no failure.
    """
    if not isinstance(line, dict):
        raise TypeError("not a failure")
    failure = Failure(**line)
    numbers = (failure.count, failure.first_step, failure.last_step, failure.group, failure.sibling)
    texts = (failure.key, failure.kind, failure.cause, failure.traceback)
    is_failure = (
        all(isinstance(number, int) and number >= 0 for number in numbers)
        and all(isinstance(text, str) for text in texts)
        and isinstance(failure.task, dict)
        and isinstance(failure.trajectory, dict)
    )
    if not is_failure:
        raise TypeError("not a failure")
    return failure
