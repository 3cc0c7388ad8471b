"""Where tasks come from, how clips are decoded, what a request to look again may ask for, and the prompt."""

from __future__ import annotations

from dataclasses import dataclass, field

from rl.config.errors import require, require_one_of, shown

SPAN_FPS, ZOOM = "span_fps", "zoom"
BUILTIN_TOOLS = (SPAN_FPS, ZOOM)  # as envs.tools.toolbox has them


@dataclass(frozen=True)
class QuickstartWorldConfig:
    """The synthetic world: real mp4 clips rendered on first use, deterministic by seed."""

    seed: int = 0  # clips and questions follow from it alone
    train_clips: int = 192  # one question each; fewer render faster and are memorised sooner
    held_out_clips: int = 64  # never among the training clips
    duration_s: float = 8.0  # of every clip; the colour to be found flashes for a small part of it
    # of every clip; an even multiple of video.coarse.fps, so that coarse frames miss the flash
    native_fps: float = 12.0
    size: int = 56  # height and width of a frame
    # colour | count | order | warmth (a guess is right half the time) | dot (too small for coarse frames; a zoom shows
    # it: configs/zoom.yaml)
    question_kinds: list[str] = field(default_factory=lambda: ["colour"])
    shuffle_options: bool = False  # letters of the options in random order per clip: takes a larger policy
    wrong_labels: float = 0.0  # share of training annotations that are wrong; held-out ones are right
    # events fit into so many frames at the rate they need, and traces of the cold start reckon with looks of no more;
    # with retrieval.max_frames as large, a look that is too wide misses the flash; 0: no limit
    look_frames: int = 0
    # frame rates that details need, ascending, six at most: each detail is as brief as its rate has to be, and the hue
    # of the border tells which. Empty: three tempos, for rates of 3, 4 and 7 at 12 native frames per second
    detail_fps: list[float] = field(default_factory=list)
    # side in pixels of the dot of kind dot; where each pixel of a frame covers as many, its colour is averaged away
    dot_px: int = 8
    # side of the light mark around it, which coarse frames show, in cells of that size; even, 4 or more
    dot_mark: int = 4
    # places of the mark along either side of the frame, evenly spread; 0: as many as fit
    dot_places: int = 0


@dataclass(frozen=True)
class SourceConfig:
    """An annotation file and its videos."""

    # quickstart (the synthetic world) | dm_rl | dm_cot | charades_sta | csv | parquet | path/file.py:reader (your own);
    # see docs/data.md
    format: str = "quickstart"
    # annotation file, or a folder: the local copy of a data set's repository on the hub; unused by quickstart
    path: str = ""
    video_root: str = ""  # folder that every video must lie under; empty: the annotation file's own
    # of csv and parquet: which column has the prompt, the video, …, as {prompt: question}; a value that is not named
    # here is looked for under its own name
    columns: dict[str, str] = field(default_factory=dict)
    split: str = ""  # of a repository; empty: its only one
    subset: str = ""  # of a repository (its card's config_name); empty: its default, or only one


def require_columns(key: str, source: SourceConfig) -> None:
    """
    Raises:
        ConfigError: the columns of a source are not names.
    """
    for value, column in source.columns.items():
        require(
            isinstance(column, str) and bool(column),
            f"{key}.columns.{value} must be the name of a column, got {column!r:.60}",
        )


@dataclass(frozen=True)
class DataConfig:
    """Where tasks come from."""

    train: SourceConfig = field(default_factory=SourceConfig)  # tasks of training steps
    # tasks of evaluations during training and of `dynframe eval` without a benchmark
    held_out: SourceConfig = field(default_factory=SourceConfig)
    quickstart: QuickstartWorldConfig = field(default_factory=QuickstartWorldConfig)
    # rows that cannot be used: skip (left out, listed in cache_dir, counted) | refuse (the run does not start)
    bad_rows: str = "skip"
    # status of clips as `dynframe validate-data` wrote it, honoured by runs; empty: validated_clips.jsonl in cache_dir
    quarantine: str = ""

    def __post_init__(self) -> None:
        require_one_of("data.bad_rows", self.bad_rows, ("skip", "refuse"))
        require_columns("data.train", self.train)
        require_columns("data.held_out", self.held_out)


@dataclass(frozen=True)
class CoarseFramesConfig:
    """Coarse frames (the paper's V0): what the policy sees first, uniform over the whole clip."""

    fps: float = 2.0  # frame rate aimed at; min_frames and max_frames bound what comes of it
    min_frames: int = 4  # of a short clip
    max_frames: int = 64  # of a long clip: the frames are spread wider
    max_pixels: int = 151_200  # per frame, after resizing to a multiple of patch * merge
    # of all coarse frames together; beyond it they are made smaller, and fewer only where that is not enough
    max_visual_tokens: int = 8_192

    def __post_init__(self) -> None:
        require(self.fps > 0, f"video.coarse.fps must be > 0, got {self.fps}")
        require(
            1 <= self.min_frames <= self.max_frames, "video.coarse.min_frames must be in 1..video.coarse.max_frames"
        )


@dataclass(frozen=True)
class VideoConfig:
    """Decoding, within limits of time and memory."""

    backend: str = "pyav"  # pyav | decord (single-stream files only; others are a typed error)
    coarse: CoarseFramesConfig = field(default_factory=CoarseFramesConfig)
    # processor time of one request, so that a busy machine loses no clip; the decoding process is killed beyond it, and
    # in any case after 20 times as long on the clock
    decode_timeout_s: float = 60.0
    # of a request without any processor time: a disk or server that does not answer; the process is killed, too
    decode_stall_timeout_s: float = 120.0
    # killable decoding processes per rollout worker; 0: decode in the worker itself, without limits
    decode_workers: int = 1
    # limit of one decoding process, beyond its share of the frame cache; an 8K clip needs 1 GiB for its reference
    # pictures
    decode_memory_mib: int = 2048
    # decoded frames kept in memory per rollout worker, so that a group decodes its clip about once; 0: none, on disk
    # neither
    frame_cache_bytes: int = 268_435_456
    # decoded frames of clips that are too large for frame_cache_bytes, in temporary files (TMPDIR) per rollout worker,
    # never more than half of what is free there; 0: none, every look decodes its window again
    frame_cache_disk_bytes: int = 4_294_967_296

    def __post_init__(self) -> None:
        require_one_of("video.backend", self.backend, ("pyav", "decord"))
        require(self.decode_timeout_s > 0, "video.decode_timeout_s must be > 0")
        require(self.decode_stall_timeout_s > 0, "video.decode_stall_timeout_s must be > 0")
        for key in ("frame_cache_bytes", "frame_cache_disk_bytes"):
            require(getattr(self, key) >= 0, f"video.{key} must be >= 0, got {getattr(self, key)}")
        require(self.decode_workers >= 0, f"video.decode_workers must be >= 0, got {self.decode_workers}")
        require(
            256 <= self.decode_memory_mib <= 1_048_576,
            f"video.decode_memory_mib must be between 256 (a 1080p clip) and 1048576, got {self.decode_memory_mib}",
        )


@dataclass(frozen=True)
class RetrievalConfig:
    """What a request to look again may ask for."""

    max_calls: int = 1  # per trajectory; 1 is the paper, 0 turns retrieval off (the baseline that may not look again)
    min_window_s: float = 0.1  # a window with less of the clip in it is refused
    max_fps: float = 10.0  # a higher rate is lowered to it, and to the clip's own
    # a lower rate is raised to it, as far as the clip's own; as large as max_fps: every look has that rate, whatever is
    # asked (the baseline that may choose its window only)
    min_fps: float = 0.0
    max_frames: int = 32  # per call; beyond it the window stays whole and the spacing widens
    max_pixels: int = 151_200  # per frame, after resizing to a multiple of patch * merge
    # what the policy may call: span_fps (frames of a window) | zoom (a region of one moment, at the clip's own
    # resolution) | "path/file.py:NAME" (your own); see docs/tools.md. A policy that is converted or built for the run
    # gets their tags as tokens
    tools: list[str] = field(default_factory=lambda: [SPAN_FPS])
    zoom_max_pixels: int = 151_200  # of the image that zoom inserts, whatever region it shows
    tool_timeout_s: float = 60.0  # of a call of your own tool; beyond it the trajectory is masked

    def __post_init__(self) -> None:
        require(bool(self.tools), f"retrieval.tools is empty: name at least one of {', '.join(BUILTIN_TOOLS)}")
        unknown = [name for name in self.tools if name not in BUILTIN_TOOLS and ":" not in name]
        require(
            not unknown,
            f"retrieval.tools: unknown tool {shown(unknown[0]) if unknown else ''}; built in: "
            f"{', '.join(BUILTIN_TOOLS)}; your own: 'package.module:NAME' or 'path/file.py:NAME'",
        )
        require(len(set(self.tools)) == len(self.tools), "retrieval.tools names a tool twice")
        require(self.zoom_max_pixels >= 1, "retrieval.zoom_max_pixels must be >= 1")
        require(self.tool_timeout_s > 0, "retrieval.tool_timeout_s must be > 0")
        require(self.max_calls >= 0, "retrieval.max_calls must be >= 0")
        require(self.max_fps > 0, "retrieval.max_fps must be > 0")
        require(
            0 <= self.min_fps <= self.max_fps,
            f"retrieval.min_fps must be between 0 and retrieval.max_fps ({self.max_fps:g}), got {self.min_fps:g}",
        )
        require(self.max_frames >= 1, "retrieval.max_frames must be >= 1")


@dataclass(frozen=True)
class PromptConfig:
    """Text around the question. A tiny policy learns the form from traces and needs none."""

    system: str = ""  # system message; empty: none
    instructions: str = ""  # after the question; tags in it become the tokens that the policy shall write
