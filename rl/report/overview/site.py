"""The page of several runs, and its data: read when they are asked for, and again when files change.

    /                             the page, without data
    /data/runs                    one row per run; not sent again where nothing changed
    /data/curves?run=&names=      curves of a run; `names` may be given several times
    /data/evaluations?run=        the evaluations of runs; `run` may be given several times, as below
    /data/predictions?evaluation=&run=&metric=&type=&look=&text=&sort=&offset=
    /data/pictures?evaluation=&run=&task=
    /run/ID/…                     the report of a run (rl.report.live)

Runs are named by the ids that /data/runs gives, evaluations by their names in the run's folder: no path comes from a
request.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from rl.report.http import Reply
from rl.report.live import LiveRun
from rl.report.overview.browse import LOOKS, SORTS, Query, browse
from rl.report.overview.curves import MOST_CURVES, MetricLog
from rl.report.overview.folders import find_runs, run_id
from rl.report.overview.pictures import PictureSource, pictures
from rl.report.overview.predictions import EVALUATIONS, PredictionCache, Predictions, evaluation_names
from rl.report.overview.rows import RowCache, RunRow
from rl.report.page import RUNS_PAGE, content_policy, render
from rl.report.steps import packed
from rl.report.thumbnails import FrameSource
from rl.tracking.metrics import describe

RUN_ROUTE = re.compile(r"/run/([0-9a-f]{12})(/.*)")
READING_S = 0.4  # for new rows, per answer: the first page stands at once, however many runs there are
AGAIN_S = 1.0  # between two looks at the folders
MOST_LOGS, MOST_REPORTS = 64, 8  # kept open: curves of runs, reports of runs
MOST_CHOSEN = 24  # runs asked about at once
MOST_FIELDS = 200  # of a query

Fields = Mapping[str, Sequence[str]]


class Clips(FrameSource, PictureSource, Protocol):
    """Pixels for both: what a run recorded, and any time of a clip."""


class RunsSite:
    """All runs of some folders. Thread-safe."""

    def __init__(self, given: Sequence[Path], source: Clips, title: str) -> None:
        self._given, self._source, self._title = tuple(given), source, title
        self._lock, self._reading, self._decoding = threading.Lock(), threading.Lock(), threading.Lock()
        self._rows = RowCache()
        self._runs: dict[str, Path] = {}
        self._left_out = False  # runs beyond the most that are looked for
        self._looked_s = -1e9
        self._index, self._tag = b"", ""
        self._state: tuple = ()
        self._logs: dict[str, MetricLog] = {}
        self._reports: dict[str, LiveRun] = {}
        self._predictions = PredictionCache()
        self._data: Mapping[str, Callable[[Fields], Any]] = {
            "/data/curves": self._curves,
            "/data/evaluations": self._evaluations,
            "/data/predictions": self._browse,
            "/data/pictures": self._pictures,
        }

    def answer(self, path: str) -> Reply | None:
        """The page, some of its data, or something of a run's report; None: there is no such thing."""
        if path == "/":
            page = render(self._title, (), live=True, page=RUNS_PAGE)
            return Reply(page.encode("utf-8"), content_policy(live=True, page=RUNS_PAGE))
        if path == "/data/runs":
            with self._lock:
                return self._listed()
        self._require_runs()
        if route := RUN_ROUTE.fullmatch(path):
            report = self._report(route[1])
            return None if report is None else report.answer(route[2])
        asked = urlsplit(path)
        try:
            query = parse_qs(asked.query, max_num_fields=MOST_FIELDS)
        except ValueError:
            return None
        if asked.path not in self._data:
            return None
        found = self._data[asked.path](query)
        return None if found is None else Reply(packed(found))

    def _require_runs(self) -> None:
        with self._lock:
            if not self._runs:
                self._find()

    def _find(self) -> None:
        found, self._left_out = find_runs(self._given)
        self._runs = {run_id(run): run for run in found}
        self._looked_s = time.monotonic()

    def _listed(self) -> Reply:
        """The list, with as many rows as could be read in time; those left come with the next answers."""
        now_s = time.monotonic()
        if now_s - self._looked_s > AGAIN_S:
            self._find()
        rows: dict[str, RunRow | None] = {}
        for name, run in self._runs.items():
            row = self._rows.get(run)
            if row is None:
                in_time = time.monotonic() - now_s < READING_S
                row = self._rows.read(run) if in_time else self._rows.stale(run)
            rows[name] = row
        state = tuple(rows.items()), self._left_out
        if state != self._state or not self._tag:
            self._index, self._state = packed(self._described(rows)), state
            self._tag = f'"{abs(hash(self._index)):x}"'
        return Reply(self._index, tag=self._tag)

    def _described(self, rows: Mapping[str, RunRow | None]) -> dict[str, Any]:
        names = sorted({name for row in rows.values() if row is not None for name in row.numbers})
        by_path = {str(run): name for name, run in self._runs.items()}
        return {
            "title": self._title,
            "left_out": self._left_out,
            "unread": sum(row is None for row in rows.values()),
            "metrics": [[name, *_told(name)] for name in names],
            "runs": [
                {"id": name, "folder": str(self._runs[name])}
                | ({"name": self._runs[name].name, "state": "unread"} if row is None else _row(row, by_path))
                for name, row in rows.items()
            ],
        }

    def _curves(self, query: Fields) -> Any:
        run = self._run(query)
        if run is None:
            return None
        with self._lock:
            log = _kept(self._logs, str(run), lambda: MetricLog(run), MOST_LOGS)
            log.refresh()
            return log.curves(list(query.get("names", ()))[:MOST_CURVES])

    def _evaluations(self, query: Fields) -> Any:
        return {name: evaluation_names(self._runs[name]) for name in self._chosen(query)}

    def _browse(self, query: Fields) -> Any:
        chosen = [(name, found) for name in self._chosen(query) if (found := self._of_run(name, query)) is not None]
        if not chosen:
            return None
        sort, look, offset = (_first(query, key) for key in ("sort", "look", "offset"))
        asked = Query(
            metric=_first(query, "metric"),
            type=_first(query, "type"),
            look=look if look in LOOKS else "",
            text=_first(query, "text")[:200],
            sort=sort if sort in SORTS else SORTS[0],
            offset=int(offset) if offset.isdecimal() and len(offset) < 9 else 0,
        )
        return browse([found for _, found in chosen], asked) | {"ids": [name for name, _ in chosen]}

    def _pictures(self, query: Fields) -> Any:
        names = self._chosen(query)
        found = self._of_run(names[0], query) if names else None
        row = found.rows.get(_first(query, "task")) if found is not None else None
        if row is None:
            return None
        asked = found.questions.get(row.task)
        if asked is None or not asked.video:
            return {"duration_s": None, "problem": "this evaluation did not record its clips", "strips": []}
        with self._decoding:  # not the other lock: the list does not wait for a slow clip
            return pictures(self._source, asked.video, row.calls)

    def _of_run(self, name: str, query: Fields) -> Predictions | None:
        """What the run said in the evaluation that is asked for; None: it has no such evaluation."""
        evaluation, run = _first(query, "evaluation"), self._runs[name]
        if evaluation not in evaluation_names(run):
            return None
        with self._reading:
            return self._predictions.get(run / EVALUATIONS / evaluation)

    def _run(self, query: Fields) -> Path | None:
        return self._runs.get(_first(query, "run"))

    def _chosen(self, query: Fields) -> list[str]:
        return [name for name in dict.fromkeys(query.get("run", ())) if name in self._runs][:MOST_CHOSEN]

    def _report(self, name: str) -> LiveRun | None:
        with self._lock:
            run = self._runs.get(name)
            if run is None:
                return None
            return _kept(self._reports, name, lambda: LiveRun(run, self._source, home="../../"), MOST_REPORTS)


def _row(row: RunRow, by_path: Mapping[str, str]) -> dict[str, Any]:
    ancestry = [
        {**one, "id": next((by_path[path] for path in _parents(one["source"]) if path in by_path), None)}
        for one in row.ancestry
    ]
    return asdict(row) | {"ancestry": ancestry}


def _parents(source: str) -> list[str]:
    """Of RUN/checkpoints/step_N, the run among others."""
    return [str(path) for path in list(Path(source).parents)[:3]]


def _told(name: str) -> tuple[str, str]:
    try:
        return describe(name)
    except KeyError:
        return "", "not known to this version of dynframe"


def _first(query: Fields, key: str) -> str:
    return query.get(key, ("",))[0]


def _kept(known: dict[str, Any], name: str, make: Callable[[], Any], most: int) -> Any:
    """What is known under a name, made if it is not; the least recently used makes room."""
    found = known.pop(name, None) or make()
    known[name] = found
    while len(known) > most:
        known.pop(next(iter(known)))
    return found
