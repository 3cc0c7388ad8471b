"""What must lie on disk before a run starts: the clips, the tasks, the traces; what is left out is said."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

from rich.console import Console

from envs.data.clip_status import quarantined
from envs.data.dataset import LoadedTasks, RejectedRow, load_tasks, load_traces
from envs.data.formats import RetrievalTrace
from envs.data.hub_copy import Part
from envs.data.rows import DatasetError
from envs.data.sources import Source, has_traces, locate_source
from envs.data.traces import Clip, traces_from_evidence
from envs.synthetic.world import QuickstartWorld, WorldFiles, cold_start_traces, find_world, render_world
from envs.video.reader import VideoReader
from rl.config.data import ZOOM, SourceConfig
from rl.config.errors import ConfigError
from rl.config.file import to_dict
from rl.config.run import RunConfig
from rl.run.console.stages import counted_stage
from rl.run.prepare.built_once import fingerprint
from rl.run.prepare.episode_context import make_reader
from rl.run.prepare.errors import as_config_error

log = logging.getLogger(__name__)

TRACES_PER_CLIP = 4  # jittered supervised traces made from each clip of the synthetic world
ROWS_IN_LOG = 10  # of those left out; the file has all
_CLIPS: dict[tuple[str, int], Clip] = {}  # by path and time of change: what this process has indexed


def prepare_world(config: RunConfig, console: Console) -> WorldFiles:
    """The synthetic world's clips, rendered on first use.

    Raises:
        ConfigError: no such world can be made.
    """
    declared, world, cache = config.data.quickstart, _declared_world(config), Path(config.cache_dir)
    if (found := find_world(world, cache)) is not None:
        return found
    clips = declared.train_clips + declared.held_out_clips
    with counted_stage(console, f"rendering {clips:,} clips", clips) as rendering:
        return render_world(world, cache, progress=rendering.update, workers=os.cpu_count() or 1)


def _declared_world(config: RunConfig) -> QuickstartWorld:
    declared = to_dict(config.data.quickstart)
    try:
        return QuickstartWorld(**declared, coarse_fps=config.video.coarse.fps)
    except ValueError as error:
        raise ConfigError(f"data.quickstart: {error}") from error


def require_sources(config: RunConfig) -> None:
    """Look for every annotation file and folder of videos that training reads, before a clip is rendered or indexed.

    Raises:
        ConfigError: one is missing, or the synthetic world cannot be made; names the section.
    """
    sources = {"data.train": config.data.train}
    if config.trainer.eval_tasks:
        sources["data.held_out"] = config.data.held_out
    if config.cold_start.enabled:
        sources["cold_start.traces"] = config.cold_start.traces
    for section, source in sources.items():
        if source.format == "quickstart":
            _declared_world(config)
            continue
        try:
            locate_source(_source(source))
        except DatasetError as error:
            raise ConfigError(f"{section}: {error}") from error


@as_config_error()
def prepare_tasks(config: RunConfig, split: str, console: Console) -> LoadedTasks:
    """Tasks of a split ("train" or "held_out"); rows that cannot be used are reported, and refused if so configured.

    Raises:
        ConfigError: no such data, no usable row, or a bad one with data.bad_rows=refuse.
    """
    source = getattr(config.data, split)
    reader = make_reader(config.video)
    try:
        found = located(config, source, split, console)
        loaded = _load_indexed(found, reader, unusable_clips(config), console)
    finally:
        reader.close()
    report_rejected(config, split, loaded.rejected)
    for part in loaded.windows_left_out[:ROWS_IN_LOG]:
        _warn_once(f"{part.file}:{part.line}: the row is kept, but: {part.reason}")
    if loaded.windows_left_out:
        log.warning("%d times, windows are left out of rows that have others", len(loaded.windows_left_out))
    if not loaded.tasks:
        first = f"; line {loaded.rejected[0].line}: {loaded.rejected[0].reason}" if loaded.rejected else ""
        raise DatasetError(f"{found.path}: no usable row (data.{split}){first}")
    return loaded


def quarantine_file(config: RunConfig) -> Path:
    """Where `dynframe validate-data` keeps the status of clips."""
    return Path(config.data.quarantine) if config.data.quarantine else Path(config.cache_dir) / "validated_clips.jsonl"


def unusable_clips(config: RunConfig) -> Mapping[str, str]:
    """Videos that a validation has quarantined, and why.

    Raises:
        DatasetError: the file that `data.quarantine` names is not there, or holds something else.
    """
    path = quarantine_file(config)
    if config.data.quarantine and not path.is_file():
        raise DatasetError(f"data.quarantine: no such file: {path}; `dynframe validate-data` on this data writes it")
    return quarantined(path)


def _load_indexed(found: Source, reader: VideoReader, unusable: Mapping[str, str], console: Console) -> LoadedTasks:
    """Tasks with spans clamped to their clips, which are indexed one by one: hours for a large data set.

    Args:
        unusable: videos that a validation has quarantined, and why.
    """
    videos = {task.video_path for task in load_tasks(*found, unusable=unusable).tasks}
    with counted_stage(console, f"indexing {len(videos):,} videos", len(videos)) as indexing:

        def duration_of(path: str) -> float:
            indexing.advance()
            return _clip(reader, path).duration_s

        return load_tasks(*found, duration_of=duration_of, unusable=unusable)


def _clip(reader: VideoReader, path: str) -> Clip:
    """Length and rate of a video, which is indexed once for all that is made from its rows."""
    changed_ns = os.stat(path).st_mtime_ns if os.path.exists(path) else 0
    if (path, changed_ns) not in _CLIPS:
        index = reader.describe(path)
        _CLIPS[path, changed_ns] = Clip(index.duration_s, index.native_fps)
    return _CLIPS[path, changed_ns]


@as_config_error()
def prepare_traces(config: RunConfig, console: Console) -> tuple[RetrievalTrace, ...]:
    """Supervised traces of the cold start: read from a file, or made with jitter from annotated evidence.

    Raises:
        ConfigError: no such file, no usable trace, a bad row with data.bad_rows=refuse, or retrieval is off and every
            trace looks.
    """
    quickstart = config.cold_start.traces.format == "quickstart"
    traces = _world_traces(config, console) if quickstart else _given_traces(config, console)
    if not config.retrieval.max_calls and all(len(trace.replies) > 1 for trace in traces):
        raise ConfigError(
            "retrieval.max_calls=0 refuses the looks that all traces of the cold start teach: take a policy that has "
            "learned to look (--run RUN, or cold_start.enabled=false and the folder that `dynframe cold-start` prints "
            "as policy.path)"
        )
    return traces


def _given_traces(config: RunConfig, console: Console) -> tuple[RetrievalTrace, ...]:
    """Traces read from a file, or made from the evidence in one."""
    declared, unusable = config.cold_start, unusable_clips(config)
    found = located(config, declared.traces, "train", console)
    if has_traces(found):
        loaded = load_traces(*found, unusable=unusable)
        traces, rejected = loaded.traces, loaded.rejected
    else:
        traces, rejected = _traces_from_evidence(config, found, unusable, console)
    report_rejected(config, "cold_start", rejected)
    if not traces:
        raise DatasetError(f"cold_start.traces: no usable trace in {declared.traces.path}")
    return traces


def _traces_from_evidence(
    config: RunConfig, found: Source, unusable: Mapping[str, str], console: Console
) -> tuple[tuple[RetrievalTrace, ...], tuple[RejectedRow, ...]]:
    """Traces made with jitter, within the clips, from the rows that say where and how fast to look."""
    declared, reader = config.cold_start, make_reader(config.video)
    try:
        loaded = _load_indexed(found, reader, unusable, console)
        traces = traces_from_evidence(
            loaded.tasks,
            clip_of=lambda path: _clip(reader, path),
            window_jitter_s=declared.window_jitter_s,
            fps_jitter=declared.fps_jitter,
            per_task=TRACES_PER_CLIP,
            seed=declared.seed,
        )
    finally:
        reader.close()
    without = len(loaded.tasks) - len(traces) // TRACES_PER_CLIP
    if without:
        log.warning("cold_start.traces: %d rows name no window with a rate to look at: no trace of them", without)
    return traces, loaded.rejected


def _world_traces(config: RunConfig, console: Console) -> tuple[RetrievalTrace, ...]:
    """Traces of the synthetic world, whose answers say what the jittered look really shows."""
    declared, world = config.cold_start, prepare_world(config, console)
    rows = [json.loads(line) for line in world.train_jsonl.read_text(encoding="utf-8").splitlines()]
    jitter = (declared.window_jitter_s, round(declared.fps_jitter))
    further = {
        "looks": declared.looks,
        "look_frames": config.data.quickstart.look_frames,
        "window_shift_s": declared.window_shift_s,
        "misread": declared.misread,
    }
    if "dot" in config.data.quickstart.question_kinds:
        further |= {"box_jitter": declared.box_jitter, "zooms": ZOOM in config.retrieval.tools}
    is_plain = further == {"looks": 1, "look_frames": 0, "window_shift_s": 0.0, "misread": 0.0}
    named = [jitter, declared.seed, TRACES_PER_CLIP, *([] if is_plain else [further])]
    path = world.folder / f"traces-{fingerprint(named)}.json"
    if not path.exists():
        traces = cold_start_traces(rows, *jitter, seed=declared.seed, traces_per_row=TRACES_PER_CLIP, **further)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(traces), encoding="utf-8")
        draft.rename(path)
    return load_traces("dm_cot", path, world.folder).traces


def located(config: RunConfig, source: SourceConfig, split: str, console: Console) -> Source:
    """The source that a section declares; the quickstart's is rendered on first use."""
    if source.format != "quickstart":
        return _source(source)
    world = prepare_world(config, console)
    return Source("dm_rl", world.train_jsonl if split == "train" else world.held_out_jsonl, str(world.folder))


def _source(declared: SourceConfig) -> Source:
    part = Part(declared.split, declared.subset)
    return Source(declared.format, declared.path, declared.video_root, declared.columns, part)


def report_rejected(config: RunConfig, split: str, rejected: Sequence[RejectedRow]) -> None:
    """Every row left out goes to a file, the first ones to the log.

    Raises:
        DatasetError: there are any, and data.bad_rows=refuse.
    """
    home = Path(config.cache_dir) / f"rejected_rows-{split}.jsonl"
    if not rejected:
        home.unlink(missing_ok=True)  # of an earlier version of the data
        return
    home.parent.mkdir(parents=True, exist_ok=True)
    home.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rejected), encoding="utf-8")
    for row in rejected[:ROWS_IN_LOG]:
        _warn_once(f"{row.file}:{row.line}: row left out: {row.reason}")
    log.warning("%d rows left out, each with its reason in %s", len(rejected), home)
    if config.data.bad_rows == "refuse":
        first = rejected[0]
        raise DatasetError(
            f"{first.file}:{first.line}: {first.reason} ({len(rejected)} bad rows, all in {home}; "
            "data.bad_rows=skip leaves them out)"
        )


@cache
def _warn_once(line: str) -> None:
    """Splits may be read from one file, and a file more than once."""
    log.warning("%s", line)
