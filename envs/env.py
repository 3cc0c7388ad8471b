"""One episode of looking again: a single-use environment that answers the policy's calls with what its tools insert.

It keeps the history. Tokens and videos are only ever appended: what the engine is given at turn k + 1 is exactly what
it was given at turn k, what it then sampled, and what is inserted here.

Legend: T frames of a block.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from envs.clip_failures import clip_failure, clip_failure_note
from envs.clip_view import EpisodeClip
from envs.initial_observation import InitialObservation, VideoReader
from envs.prompts import OPENED_THOUGHT, VideoProcessor, inserted_text, refusal_note
from envs.tools.rules import RetrievalRules
from envs.tools.tool import Shown, Tool
from envs.tools.toolbox import Toolbox, builtin_toolbox
from envs.tools.users import ToolFailedError
from envs.video.file import VideoError
from rl.trajectory import (
    Call,
    ClipFailure,
    Completion,
    Frames,
    GrantedCall,
    MalformedCall,
    RefusedCall,
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
        tools: Toolbox | None = None,
    ) -> None:
        """
        Args:
            tools: that the policy may call; None: the built-in ones that `rules` names.
        """
        self._task = task
        self._initial = initial
        self._processor = processor
        self._reader = reader
        self._rules = rules
        self._tools = builtin_toolbox(rules, processor) if tools is None else tools
        self._clip = EpisodeClip(task, initial.clip, processor, reader)
        self._budget = budget
        self._turns: list[Turn] = []
        self._observation: Observation | None = None
        self._token_ids: tuple[int, ...] = ()
        self._sampled = 0
        self._announced = 0  # tokens that the call which is answered inserts at most
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
        """Where the engine must stop: at a request of a tool, and at the end."""
        return *self._tools.end_ids, self._processor.ids.im_end

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
        return bool(completion.token_ids) and self._tools.of(completion.token_ids[-1]) is not None

    def step(self, completion: Completion) -> Observation | Trajectory:
        """Take a completion; return the observation it asked for, or the finished trajectory.

        Raises:
            EngineContractError: the completion cannot have come from a request of this environment.
        """
        self._check(completion)
        self._token_ids += completion.token_ids
        self._sampled += len(completion.token_ids)
        tool = self._tools.of(completion.token_ids[-1])
        if tool is None:
            self._record(completion, Segment.REASONING)
            return self._finish(StopReason.ANSWERED if _is_end(completion, self) else StopReason.TRUNCATED)
        try:
            return self._answer(tool, completion)
        except ToolFailedError as error:
            if self._observation is not None:
                self._record(completion, Segment.SAMPLING, MalformedCall("the tool failed", tool.name))
            text = _transcript(self._turns, self._processor)
            note = f"tool {error.failure.tool}: {error.failure.detail}"
            return Trajectory(tuple(self._turns), StopReason.TOOL_ERROR, text, note, tool_failure=error.failure)

    def stop_early(self) -> Trajectory:
        """End where it stands: an episode replayed to decode its frames again goes no further than it went before."""
        return self._finish(StopReason.TRUNCATED, "replayed for its frames")

    def _answer(self, tool: Tool, completion: Completion) -> Observation | Trajectory:
        call = self._read_call(tool, self._processor.decode(completion.token_ids))
        self._record(completion, Segment.SAMPLING, call)
        if not self.new_tokens_left:
            return self._finish(StopReason.TRUNCATED)
        if isinstance(call, MalformedCall | RefusedCall):
            return self._observe(Observation(refusal_note(call.reason, self._processor, tool.nothing)))
        return self._insert(tool, call)

    def _read_call(self, tool: Tool, text: str) -> Call:
        """Within the limit? Well-formed? Then as much of it as the context holds. What the policy may still write is
        set aside: looking never costs it the answer."""
        if tool not in self._tools.enabled:
            return RefusedCall(f"the tool {tool.name} is not enabled", tool.name)
        if not self._rules.max_calls:
            return RefusedCall("retrieval is turned off", tool.name)
        if sum(isinstance(turn.call, GrantedCall) for turn in self._turns) >= self._rules.max_calls:
            return RefusedCall(f"the limit of {self._rules.max_calls} per answer is reached", tool.name)
        call = tool.parse(text, self._clip)
        if not isinstance(call, GrantedCall) or not self.new_tokens_left:
            return call
        room = self._budget.max_model_len - len(self._token_ids) - self.new_tokens_left
        self._announced = tool.tokens(call, self._clip)
        if self._announced <= room:
            return call
        self._announced = room
        return tool.shrink(call, self._clip, room)

    def _insert(self, tool: Tool, call: GrantedCall) -> Observation | Trajectory:
        started = time.perf_counter()
        try:
            inserted = tool.insert(call, self._clip)
        except VideoError as error:
            return video_error_trajectory(self._turns, self._processor, clip_failure(error, call.span))
        decoded = time.perf_counter()
        self.seconds["decode"] += decoded - started
        if not isinstance(inserted, Shown):
            return self._insert_announced(tool, Observation(inserted_text(inserted, self._processor)))
        try:
            frames = self._processor.make_frames(inserted.pixels_THWC, inserted.times_s_T)
        except ValueError as error:
            raise ToolFailedError.of(tool, str(error)) from error
        self.seconds["segment"] += time.perf_counter() - decoded
        return self._insert_announced(tool, Observation(tuple(self._processor.video_block(frames)), frames))

    def _insert_announced(self, tool: Tool, observation: Observation) -> Observation | Trajectory:
        """
        Raises:
            ToolFailedError: it is more than the tool said: what is inserted must not take the answer's room.
        """
        if (count := len(observation.token_ids)) > self._announced:
            raise ToolFailedError.of(tool, f"inserted {count} tokens, but had announced {self._announced} at most")
        return self._observe(observation)

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
