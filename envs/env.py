"""One episode of looking again: a single-use environment that answers the policy's calls with frames.

It keeps the history. Tokens and videos are only ever appended: what the engine is given at turn k + 1 is exactly what
it was given at turn k, what it then sampled, and what is inserted here.

Legend: T frames of a block.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from envs.clip_failures import clip_failure, clip_failure_note
from envs.initial_observation import InitialObservation, VideoReader, decode, unseen_frames
from envs.prompts import OPENED_THOUGHT, VideoProcessor, refusal_note
from envs.retrieval import RetrievalRules, frame_times, parse_call
from envs.video.file import VideoError
from rl.trajectory import (
    Call,
    ClipFailure,
    Completion,
    Frames,
    MalformedCall,
    RefusedCall,
    RetrievalCall,
    Segment,
    StopReason,
    Trajectory,
    Turn,
    VideoTask,
    trajectory_videos,
)


class EngineContractError(RuntimeError):
    """The engine returned what the protocol excludes; going on would train on a wrong token history."""


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """How long an episode may become."""

    max_new_tokens: int  # sampled tokens of all turns together
    max_model_len: int  # tokens of the whole trajectory, inserted ones included


@dataclass(frozen=True, slots=True)
class Observation:
    """What the environment inserts before the policy goes on."""

    token_ids: tuple[int, ...]
    frames: Frames | None = None  # the retrieved video in it; None: the initial observation, or a note


class RetrievalEnv:
    """Runs one episode, then is used up. Where it `may_look`, `step` decodes video: call it off the event loop."""

    def __init__(
        self,
        task: VideoTask,
        initial: InitialObservation,
        *,
        processor: VideoProcessor,
        reader: VideoReader,
        rules: RetrievalRules,
        budget: TokenBudget,
    ) -> None:
        self._task = task
        self._initial = initial
        self._processor = processor
        self._reader = reader
        self._rules = rules
        self._budget = budget
        self._turns: list[Turn] = []
        self._observation: Observation | None = None
        self._token_ids: tuple[int, ...] = ()
        self._sampled = 0
        self.seconds = {"decode": 0.0, "segment": 0.0}

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The token history: the engine's next prompt."""
        return self._token_ids

    @property
    def videos(self) -> tuple[Frames, ...]:
        """The video history, in order of appearance."""
        pending = self._observation
        retrieved = () if pending is None or pending.frames is None else (pending.frames,)
        return (*trajectory_videos(self._initial.frames, self._turns), *retrieved)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Where the engine must stop: at a request to look, and at the end."""
        return self._processor.ids.fps_close, self._processor.ids.im_end

    @property
    def new_tokens_left(self) -> int:
        """Tokens the policy may still write: inserted ones count towards the context, not towards this allowance."""
        in_context = self._budget.max_model_len - len(self._token_ids)
        return max(0, min(self._budget.max_new_tokens - self._sampled, in_context))

    def reset(self) -> Observation | Trajectory:
        """Begin: the initial observation, or the end already if that leaves no room to answer.

        Raises:
            RuntimeError: the environment has been used before.
        """
        if self._token_ids:
            raise RuntimeError("an environment runs one episode; make a new one")
        return self._observe(Observation(self._initial.token_ids))

    def may_look(self, completion: Completion) -> bool:
        """Whether `step` may decode video: it ends with a call, which may be a good one."""
        return completion.token_ids[-1:] == (self._processor.ids.fps_close,)

    def step(self, completion: Completion) -> Observation | Trajectory:
        """Take a completion; return the observation it asked for, or the finished trajectory.

        Raises:
            EngineContractError: the completion cannot have come from a request of this environment.
        """
        self._check(completion)
        self._token_ids += completion.token_ids
        self._sampled += len(completion.token_ids)
        if completion.token_ids[-1] != self._processor.ids.fps_close:
            self._record(completion, Segment.REASONING)
            return self._finish(StopReason.ANSWERED if _is_end(completion, self) else StopReason.TRUNCATED)
        call = self._read_call(self._processor.decode(completion.token_ids))
        self._record(completion, Segment.SAMPLING, call)
        if not self.new_tokens_left:
            return self._finish(StopReason.TRUNCATED)
        match call:
            case RetrievalCall():
                return self._look(call)
            case MalformedCall(reason) | RefusedCall(reason):
                return self._observe(Observation(refusal_note(reason, self._processor)))

    def stop_early(self) -> Trajectory:
        """End where it stands: an episode replayed to decode its frames again goes no further than it went before."""
        return self._finish(StopReason.TRUNCATED, "replayed for its frames")

    def _read_call(self, text: str) -> Call:
        """Within the limit? Well-formed? Then as many frames as the context holds."""
        if not self._rules.max_calls:
            return RefusedCall("retrieval is turned off")
        if sum(isinstance(turn.call, RetrievalCall) for turn in self._turns) >= self._rules.max_calls:
            return RefusedCall(f"the limit of {self._rules.max_calls} per answer is reached")
        call = self._parse(text, None)
        if not isinstance(call, RetrievalCall) or not self.new_tokens_left:
            return call
        return self._parse(text, self._frames_in_context(call))

    def _parse(self, text: str, max_frames: int | None) -> Call:
        clip = self._initial.clip
        call = parse_call(
            text, duration_s=clip.duration_s, native_fps=clip.native_fps, rules=self._rules, max_frames=max_frames
        )
        return MalformedCall("the request cannot be read") if call is None else call

    def _frames_in_context(self, call: RetrievalCall) -> int:
        """How many frames of this call fit, if each becomes a scene. What the policy may still write is set aside:
        looking never costs it the answer."""
        room = self._budget.max_model_len - len(self._token_ids) - self.new_tokens_left
        times_s_T, size = frame_times(call), self._frame_size()

        def fits(num_frames: int) -> bool:
            return len(self._processor.video_block(unseen_frames(times_s_T[:num_frames], size))) <= room

        if fits(call.num_frames):
            return call.num_frames
        fitting, too_many = 0, call.num_frames
        while too_many - fitting > 1:
            middle = (fitting + too_many) // 2
            fitting, too_many = (middle, too_many) if fits(middle) else (fitting, middle)
        return fitting

    def _look(self, call: RetrievalCall) -> Observation | Trajectory:
        started = time.perf_counter()
        try:
            pixels_THWC, shown_s_T = decode(self._reader, self._task.video_path, frame_times(call), self._frame_size())
        except VideoError as error:
            return video_error_trajectory(self._turns, self._processor, clip_failure(error, call.span))
        decoded = time.perf_counter()
        frames = self._processor.make_frames(pixels_THWC, shown_s_T)
        self.seconds["decode"] += decoded - started
        self.seconds["segment"] += time.perf_counter() - decoded
        return self._observe(Observation(tuple(self._processor.video_block(frames)), frames))

    def _observe(self, observation: Observation) -> Observation | Trajectory:
        if len(self._token_ids) + len(observation.token_ids) >= self._budget.max_model_len:
            return self._finish(StopReason.TRUNCATED, "the context is full")
        self._observation = observation
        self._token_ids += observation.token_ids
        return observation

    def _record(self, completion: Completion, segment: Segment, call: Call | None = None):
        self._turns.append(Turn(self._observation.token_ids, completion, segment, call, self._observation.frames))
        self._observation = None

    def _finish(self, stop_reason: StopReason, note: str = "") -> Trajectory:
        return Trajectory(tuple(self._turns), stop_reason, _transcript(self._turns, self._processor), note)

    def _frame_size(self) -> tuple[int, int]:
        clip = self._initial.clip
        return self._processor.fit(clip.height, clip.width, self._rules.max_pixels)

    def _check(self, completion: Completion) -> None:
        ids, token_ids = self._processor.ids, completion.token_ids
        banned = {ids.vision_start, ids.vision_end, ids.video_pad, ids.image_pad}
        faults = {
            "a completion that was not requested": self._observation is None,
            "no token": not token_ids,
            f"{len(completion.logprobs)} log-probs for {len(token_ids)} tokens": (
                len(completion.logprobs) != len(token_ids)
            ),
            f"{len(token_ids)} tokens where {self.new_tokens_left} were left": len(token_ids) > self.new_tokens_left,
            "tokens after a stop token": not set(self.stop_token_ids).isdisjoint(token_ids[:-1]),
            "a vision token, which must be banned at sampling": not banned.isdisjoint(token_ids),
            f"finish reason {completion.finish_reason!r}": completion.finish_reason not in ("stop", "length"),
        }
        found = [fault for fault, is_so in faults.items() if is_so]
        if found:
            raise EngineContractError(
                f"task {self._task.task_id}, turn {len(self._turns)}: the engine returned {found[0]}"
            )


def video_error_trajectory(turns: list[Turn], processor: VideoProcessor, failure: ClipFailure) -> Trajectory:
    """An episode that ended because its clip could not be decoded."""
    note, text = clip_failure_note(failure), _transcript(turns, processor)
    return Trajectory(tuple(turns), StopReason.VIDEO_ERROR, text, note, failure)


def _is_end(completion: Completion, env: RetrievalEnv) -> bool:
    return completion.finish_reason == "stop" or completion.token_ids[-1] in env.stop_token_ids


def _transcript(turns: list[Turn], processor: VideoProcessor) -> str:
    """The text in order: the thought that the prompt opened, if it did, the policy's text without its end token, notes
    as they are, videos as <video>."""
    parts = [OPENED_THOUGHT] if turns and processor.opens_thought else []
    for number, turn in enumerate(turns):
        if number:
            parts.append("<video>" if turn.frames is not None else processor.decode(turn.context_token_ids))
        written = turn.completion.token_ids
        parts.append(processor.decode(written[:-1] if written[-1] == processor.ids.im_end else written))
    return "".join(parts)
