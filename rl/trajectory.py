"""The data that flows through a training step: one frozen type per stage.

    VideoTask -> TrajectoryGroup -> ScoredGroup -> TrainingSample -> tensors (rl.algorithm.batch) -> LearnerUpdate

Legend: P groups of a step · G siblings of one task · T frames of a block, or tokens of a sample (said where it stands)
· H W pixels.

Times are seconds on the video clock: 0 is the first displayable frame.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rl.calls import (
    SPAN_FPS as SPAN_FPS,
)
from rl.calls import (
    Call as Call,
)
from rl.calls import (
    GrantedCall as GrantedCall,
)
from rl.calls import (
    MalformedCall as MalformedCall,
)
from rl.calls import (
    RefusedCall as RefusedCall,
)
from rl.calls import (
    RetrievalCall as RetrievalCall,
)
from rl.calls import (
    TimeSpan as TimeSpan,
)
from rl.calls import (
    ToolCall as ToolCall,
)
from rl.packed_tuples import PackedFloats, PackedInts

if TYPE_CHECKING:
    import numpy as np

Group = TypeVar("Group")


class Segment(IntEnum):
    """Whose token it is. A turn boundary is the retrieval boundary, so the segment is a property of the turn."""

    CONTEXT = 0  # given by the environment: never trained on
    SAMPLING = 1  # a turn of the policy that ends in a retrieval call, well-formed or not
    REASONING = 2  # the policy's last turn


class StopReason(StrEnum):
    """Why a trajectory ended."""

    ANSWERED = "answered"  # the policy wrote its end token
    TRUNCATED = "truncated"  # token budget used up; masked from the loss by default
    VIDEO_ERROR = "video_error"  # the video could not be read; masked and counted, never scored 0
    TOOL_ERROR = "tool_error"  # a tool of the user's failed; likewise


class AnswerKind(StrEnum):
    """How an answer is compared with the reference."""

    LETTER = "letter"  # multiple choice: "B", "(B)", "B. text"
    SPAN = "span"  # "a - b" in seconds, scored by IoU
    NUMBER = "number"  # by value and unit: "1.50" is "1.5", "25 %" is "0.25", "$5" is not "5"
    SCORE = "score"  # the points of each side: "3-1" is "3 : 1"; never guessed, a row says so
    OPEN = "open"  # free text, normalised exact match


@dataclass(frozen=True, slots=True)
class VideoTask:
    """One dataset row: a question about a video, with its reference answer and, if annotated, its evidence."""

    task_id: str
    video_path: str  # absolute, already confined to the data root
    question: str
    answer: str
    answer_kind: AnswerKind
    evidence_span: TimeSpan | None = None
    evidence_fps: float | None = None
    further_evidence: tuple[TimeSpan, ...] = ()  # windows beside `evidence_span`, where several are annotated
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)  # the row's other columns, for your rewards

    @property
    def evidence(self) -> tuple[TimeSpan, ...]:
        """Every annotated window, in the row's order; empty: there is none."""
        return () if self.evidence_span is None else (self.evidence_span, *self.further_evidence)


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """A video block: resized pixels with their clock, cut into scenes.

    `pixels_THWC` is a uint8 array (RGB); while a block travels between processes, None or an object-store reference
    (actors.frames exchanges one for the other). `digest` names the content: pixels, timestamps and scene lengths.
    """

    pixels_THWC: np.ndarray
    timestamps_s_T: tuple[float, ...]  # presentation time of each frame
    scene_lengths: tuple[int, ...]  # frames per FlexiVideo scene, in order; they sum to T
    height: int
    width: int
    digest: str

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self.timestamps_s_T)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an engine draws tokens. Log-probs are of the distribution these settings produce."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0  # < 1 in evaluation only: truncated support biases importance ratios
    top_k: int = 0  # 0 = off; likewise
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One engine call: token ids with every placeholder already expanded, and the videos in order of appearance."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    videos: tuple[Frames, ...]
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Completion:
    """What one engine call produced."""

    token_ids: tuple[int, ...]  # the stop token included
    logprobs: tuple[float, ...]  # behaviour log-probs, same length, natural log
    finish_reason: str  # "stop" | "length"
    policy_version: int
    cached_prompt_tokens: int = 0  # prompt tokens served from the engine's prefix cache

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_ids", PackedInts.of(self.token_ids))
        object.__setattr__(self, "logprobs", PackedFloats.of(self.logprobs))


@dataclass(frozen=True, slots=True)
class Turn:
    """One observation from the environment, then the policy's completion."""

    context_token_ids: tuple[int, ...]
    completion: Completion
    segment: Segment  # SAMPLING or REASONING
    call: Call | None = None  # the request this turn ends in
    frames: Frames | None = None  # the video inside the context; the first turn's is the group's `coarse_frames`

    def __post_init__(self) -> None:
        object.__setattr__(self, "context_token_ids", PackedInts.of(self.context_token_ids))


@dataclass(frozen=True, slots=True)
class ClipFailure:
    """A clip that could not be decoded, and what was asked of it."""

    path: str
    window: TimeSpan | None  # on the clip's clock; None: the whole clip, for its coarse frames
    error: str  # "CorruptVideoError"
    problem: str  # one line, without the path
    remedy: str  # one line: what to do about this clip


@dataclass(frozen=True, slots=True)
class ToolFailure:
    """A tool of a user's that raised, or did not do what it had said. The trajectory is masked, never scored 0."""

    tool: str  # its name
    detail: str  # one line
    location: ErrorLocation | None = None


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One episode. The full token sequence is context + completion of each turn, concatenated."""

    turns: tuple[Turn, ...]
    stop_reason: StopReason
    # everything the policy wrote, decoded, retrieved videos shown as <video>; behind the <think> that its prompt opened
    answer_text: str = ""
    note: str = ""  # why it ended early, one line
    clip_failure: ClipFailure | None = None  # of a VIDEO_ERROR
    tool_failure: ToolFailure | None = None  # of a TOOL_ERROR

    @property
    def calls(self) -> tuple[Call, ...]:
        """Requests to look again, in order, granted or not."""
        return tuple(turn.call for turn in self.turns if turn.call is not None)

    @property
    def granted_calls(self) -> tuple[GrantedCall, ...]:
        """Those of them that were granted, in order."""
        return tuple(call for call in self.calls if isinstance(call, GrantedCall))


@dataclass(frozen=True, slots=True)
class TrajectoryGroup:
    """G siblings of one task; the coarse frames are decoded, cut and stored once for all of them."""

    task: VideoTask
    trajectories_G: tuple[Trajectory, ...]
    coarse_frames: Frames | None  # None only if the video could not be read
    duration_s: float = 0.0
    seconds: Mapping[str, float] = field(default_factory=dict)  # where time went: "decode", "generate"


@dataclass(frozen=True, slots=True)
class SegmentRewards:
    """The scores of one trajectory."""

    sampling: float | None  # None: the task has no evidence annotation
    reasoning: float
    breakdown: Mapping[str, float]  # each term by name, unweighted
    calls: tuple[float, ...] = ()  # the sampling reward of each call, in order; empty without calls or annotation
    numbers: Mapping[str, float] = field(default_factory=dict)  # what else terms tell, by "term/name"; never counted


@dataclass(frozen=True, slots=True)
class ErrorLocation:
    """Where a reward's code raised, or where the function begins that gave no usable number."""

    file: str
    line: int
    function: str
    source: str  # the line itself; empty where it cannot be read
    traceback: str  # from the reward function down, bounded; empty where nothing was raised


@dataclass(frozen=True, slots=True)
class RewardFailure:
    """A reward that could not be computed. The trajectory is masked and counted, never scored 0."""

    term: str  # "*": no single one
    # "raised" | "timeout" | "memory" | "not_finite" | "not_a_number" | "worker_died" | "video_error" | "no_turns"
    cause: str
    detail: str  # one line
    task_id: str = ""
    location: ErrorLocation | None = None  # None where no code of the reward is to blame


Rewards = tuple[SegmentRewards | RewardFailure, ...]  # of a group's siblings, in order


@dataclass(frozen=True, slots=True)
class ScoredGroup(Generic[Group]):
    """A group and the scores of each sibling, same order."""

    group: Group  # TrajectoryGroup; in the driver rl.group_summary.RemoteGroup
    rewards_G: Rewards


@dataclass(frozen=True, slots=True)
class SampledStep:
    """The scored groups of a step, and what it took to get them."""

    groups: tuple[ScoredGroup, ...]
    resampled: int = 0  # zero-variance groups that others were drawn for
    rollout_s: float = 0.0  # from the start of the step's first group to the end of its last
    reward_s: float = 0.0  # in which only scores were missing


# one step's tasks, draw by draw: yields (tasks, attempt), is sent their groups, scored and in order; returns the groups
# to learn from, and how many of them stand in for others
Drawing = Generator[tuple[Sequence[VideoTask], int], list[ScoredGroup], tuple[list[ScoredGroup], int]]


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """One trajectory, flat and trainable. Every sequence has one entry per token."""

    token_ids: tuple[int, ...]
    segment_ids: tuple[int, ...]  # Segment values
    turn_ids: tuple[int, ...]  # index of the turn the token belongs to
    behavior_logprobs: tuple[float, ...]  # 0 on context
    advantages: tuple[float, ...]  # 0 on context
    loss_mask: tuple[bool, ...]  # True where the policy's token is learned from
    policy_versions: tuple[int, ...]  # -1 on context
    videos: tuple[Frames, ...]


@dataclass(frozen=True, slots=True)
class WorkSpan:
    """A time in which a worker worked, by the wall clock of its machine (time.time())."""

    worker: str  # "rollout/0"
    work: str  # what it did: "rollout", "reward", "update", …
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, eq=False)
class LearnerUpdate:
    """What came of learning from scored groups; groups and siblings in their order.

    Log-probs are the learner's own of each sampled token (context left out, float32, nat) before its first optimizer
    step of the update, while it still was the policy that sampled; NaN on tokens not learned from. None: the sibling
    was left out, or its turn came in a later optimizer step (`learner.updates_per_step` > 1). In the driver they are
    there for the first groups only, those that are recorded.
    """

    metrics: Mapping[str, float]  # of all ranks
    logprobs_PG: tuple[tuple[np.ndarray | None, ...], ...]
    steps_taken: int  # optimizer steps; 0: there was nothing to learn, the weights are what they were
    # digest of the master weights and AdamW's state after it, of all ranks in order; empty: `learner.digest_every` left
    # this step out
    optimizer: str = ""
    spans: tuple[WorkSpan, ...] = ()  # when each rank worked on it


@dataclass(frozen=True, slots=True)
class RunState:
    """Where to resume: with the config and the seed, this integer pair determines every later task."""

    step: int
    policy_version: int
    seed: int


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file of a checkpoint, as the process that wrote it vouches for it."""

    name: str  # relative to the checkpoint's folder, parts joined by "/"
    num_bytes: int
    sha256: str  # hexadecimal


@dataclass(frozen=True, slots=True)
class WorkerFailure:
    """A worker that died, hung or raised: where it ran, and the end of its log."""

    worker: str  # its name in Ray: "NAME/rollout/0"
    node: str  # address of its node; empty: unknown
    pid: int  # 0: unknown
    log: str  # path of its log on that node; empty: unknown
    last_lines: tuple[str, ...]  # of the log, oldest first

    def __str__(self) -> str:
        """Worker, node and log file in one line, then the log's last lines."""
        where = f"{self.worker}, process {self.pid or 'unknown'} on node {self.node or 'unknown'}; its log: "
        if not self.last_lines:
            return f"{where}{self.log or 'not found'}"
        return "\n".join([f"{where}{self.log}, which ends with", *(f"  | {line}" for line in self.last_lines)])


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that broke and was recovered while a run went on."""

    kind: str  # "worker_died" | "worker_hung" | "recycled" | "learner_lost" | "frames_lost" | "push_interrupted" | ...
    worker: str  # its name: "rollout/0"
    cause: str  # one line
    action: str  # what was done about it, one line
    detected_s: float  # time.time() when it was noticed
    recovery_s: float  # seconds from there until work went on
    failure: WorkerFailure | None = None  # of the worker that was lost, if it was one


def trajectory_tokens(trajectory: Trajectory) -> tuple[int, ...]:
    """The token history: context and completion of every turn, concatenated."""
    return tuple(token for turn in trajectory.turns for token in (*turn.context_token_ids, *turn.completion.token_ids))


def trajectory_videos(coarse_frames: Frames | None, turns: Sequence[Turn]) -> tuple[Frames, ...]:
    """The video history: coarse frames first, then each turn's, in order of appearance."""
    return tuple(frames for frames in (coarse_frames, *(turn.frames for turn in turns)) if frames is not None)
