"""Where tasks come from, how clips are decoded, what a request to look again may ask for, and the prompt."""

from __future__ import annotations

from dataclasses import dataclass, field

from rl.config.errors import require, require_one_of


@dataclass(frozen=True)
class QuickstartWorldConfig:
    """The synthetic world: real mp4 clips rendered on first use, deterministic by seed."""

    seed: int = 0
    train_clips: int = 192
    held_out_clips: int = 64
    duration_s: float = 8.0
    native_fps: float = 12.0
    size: int = 56  # pixels, square
    question_kinds: list[str] = field(
        default_factory=lambda: ["colour"]
    )  # colour | count | order | warmth (a lucky answer) | mislabelled (a wrong annotation)
    shuffle_options: bool = False  # letters in random order per clip: to look them up takes a larger policy


@dataclass(frozen=True)
class SourceConfig:
    """Rows of one split."""

    format: str = "quickstart"  # quickstart | dm_rl | dm_cot | charades_sta
    path: str = ""  # annotation file; unused by quickstart
    video_root: str = ""  # every video must lie under it; empty: the annotation file's folder


@dataclass(frozen=True)
class DataConfig:
    """Where tasks come from."""

    train: SourceConfig = field(default_factory=SourceConfig)
    held_out: SourceConfig = field(default_factory=SourceConfig)
    quickstart: QuickstartWorldConfig = field(default_factory=QuickstartWorldConfig)
    bad_rows: str = "skip"  # skip (reported and counted) | refuse
    quarantine: str = (
        ""  # verdicts of `dynframe validate-data`, honoured by runs; empty: validated_clips.jsonl in cache_dir
    )

    def __post_init__(self) -> None:
        require_one_of("data.bad_rows", self.bad_rows, ("skip", "refuse"))


@dataclass(frozen=True)
class CoarseFramesConfig:
    """V0: the frames the policy sees first, uniform over the whole clip."""

    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 64
    max_pixels: int = 151_200  # per frame, after resizing to a multiple of patch * merge
    max_visual_tokens: int = 8_192  # of the whole block

    def __post_init__(self) -> None:
        require(self.fps > 0, f"video.coarse.fps must be > 0, got {self.fps}")
        require(
            1 <= self.min_frames <= self.max_frames, "video.coarse.min_frames must be in 1..video.coarse.max_frames"
        )


@dataclass(frozen=True)
class VideoConfig:
    """Decoding."""

    backend: str = "pyav"  # pyav | decord (plain single-stream files only; others fall back to a typed error)
    coarse: CoarseFramesConfig = field(default_factory=CoarseFramesConfig)
    decode_timeout_s: float = 60.0  # one request; the decoding process is killed beyond it
    decode_workers: int = 1  # killable decoding processes per rollout worker; 0: decode in the worker, without limits
    # of one decoding process, beyond its share of the frame cache; an 8K clip needs 1 GiB for its reference pictures
    decode_memory_mib: int = 2048
    frame_cache_bytes: int = 268_435_456  # shared frame cache per rollout worker

    def __post_init__(self) -> None:
        require_one_of("video.backend", self.backend, ("pyav", "decord"))
        require(self.decode_timeout_s > 0, "video.decode_timeout_s must be > 0")
        require(self.decode_workers >= 0, f"video.decode_workers must be >= 0, got {self.decode_workers}")
        require(
            256 <= self.decode_memory_mib <= 1_048_576,
            f"video.decode_memory_mib must be between 256 (a 1080p clip) and 1048576, got {self.decode_memory_mib}",
        )


@dataclass(frozen=True)
class RetrievalConfig:
    """What a request to look again may ask for."""

    max_calls: int = 1  # per trajectory; 1 is the paper, 0 turns retrieval off
    min_window_s: float = 0.1
    max_fps: float = 10.0
    max_frames: int = 32  # per call; beyond it the window stays whole and the spacing widens
    max_pixels: int = 151_200  # per frame

    def __post_init__(self) -> None:
        require(self.max_calls >= 0, "retrieval.max_calls must be >= 0")
        require(self.max_fps > 0, "retrieval.max_fps must be > 0")
        require(self.max_frames >= 1, "retrieval.max_frames must be >= 1")


@dataclass(frozen=True)
class PromptConfig:
    """Text around the question. A tiny policy learns the form from traces and needs none."""

    system: str = ""
    instructions: str = ""  # after the question; tags in it are the tokens the policy shall write
