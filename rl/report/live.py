"""The report of a live run: the page, and its data as they grow. Nothing else is served.

/                     the page, without data
/data/run             index: curves, tables, list of groups; not sent again where nothing changed
/data/step/ID         details of a step
/data/clip/NUMBER     thumbnails of a clip, decoded when first asked for
"""

from __future__ import annotations

import re
import threading
from pathlib import Path

from rl.report.build import RunData, StepCache, file_state, read_run, run_index
from rl.report.http import Reply
from rl.report.page import RUN_PAGE, content_policy, render
from rl.report.run_files import step_files
from rl.report.steps import packed
from rl.report.thumbnails import LADDER, ClipThumbnails, FrameSource, clip_thumbnails
from rl.tracking.failures import FAILURES
from rl.tracking.faults import FAULTS
from rl.tracking.lanes import LANES

ROUTE = re.compile(r"/data/(run|step|clip)(?:/(h?\d{1,12}))?")
WATCHED = ("metrics.jsonl", FAILURES, FAULTS, LANES, "config.yaml", "summary.json")


class LiveRun:
    """The page and the data of a run, read again when files change. Thread-safe."""

    def __init__(self, run: Path, source: FrameSource, *, home: str = "") -> None:
        """
        Args:
            home: where the page of all runs is, from this one; empty: there is none.
        """
        self._run, self._source, self._home = run, source, home
        self._lock, self._decoding = threading.Lock(), threading.Lock()
        self._cache = StepCache()
        self._state: tuple | None = None
        self._data: RunData | None = None
        self._index = b""
        self._numbers: dict[str, int] = {}  # of clips; they never change
        self._clips: dict[str, tuple[frozenset[int], ClipThumbnails]] = {}

    def answer(self, path: str) -> Reply | None:
        """The page, or some of its data; None: there is no such thing."""
        if path == "/":
            page = render(self._run.name, (), live=True, page=RUN_PAGE, home=self._home)
            return Reply(page.encode("utf-8"), content_policy(live=True, page=RUN_PAGE))
        if (route := ROUTE.fullmatch(path)) is None:
            return None
        kind, name = route[1], route[2]
        if kind == "run":
            return self.index() if name is None else None
        found = None
        if kind == "step" and name is not None:
            found = self.step(name)
        elif kind == "clip" and name is not None and name.isdigit():
            found = self.clip(int(name))
        return None if found is None else Reply(found)

    def index(self) -> Reply:
        """The index."""
        with self._lock:
            self._refresh()
            return Reply(self._index, tag=f'"{abs(hash(self._state)):x}"')

    def step(self, name: str) -> bytes | None:
        """gzip of a step's details; None: there is no such step."""
        with self._lock:
            self._refresh()
            return next((step.full for step in self._data.steps if step.id == name), None)

    def clip(self, number: int) -> bytes | None:
        """gzip of a clip's thumbnails, as many as its trajectories have by now; None: there is no such clip."""
        with self._lock:
            self._refresh()
            video = next((video for video, known in self._numbers.items() if known == number), None)
            if video is None:
                return None
            needs = (need for step in self._data.steps for need in step.needs if need.video == video)
            times_ms = frozenset(time for need in needs for time in need.times_ms)
        with self._decoding:  # not the other lock: curves do not wait for a slow clip
            if video not in self._clips or self._clips[video][0] != times_ms:
                self._clips[video] = times_ms, clip_thumbnails(video, sorted(times_ms), self._source, LADDER[0])
            clip = self._clips[video][1]
        return packed({"problem": clip.problem, "images": clip.images})

    def _refresh(self) -> None:
        state = self._files_state()
        if state == self._state:
            return
        self._data = read_run(self._run, self._cache)
        for step in self._data.steps:
            for need in step.needs:
                self._numbers.setdefault(need.video, len(self._numbers))
        clips = {video: {"id": number, "duration_s": None} for video, number in self._numbers.items()}
        self._index, self._state = packed(run_index(self._data, clips, ())), state

    def _files_state(self) -> tuple:
        files = [self._run / name for name in WATCHED]
        files += [file.path for file in step_files(self._run)] + sorted((self._run / "eval").glob("*/metrics.json"))
        return tuple((str(path), *file_state(path)) for path in files)
