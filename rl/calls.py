"""What a policy asks for in the middle of its answer: calls of its tools, granted, malformed or refused.

Known under rl.trajectory, as the types they are part of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SPAN_FPS = "span_fps"  # the tool that every policy has had: frames of a window, at a rate


@dataclass(frozen=True, slots=True)
class TimeSpan:
    """A window on the video clock, in seconds."""

    start_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        """Duration in seconds (negative if reversed)."""
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True)
class RetrievalCall:
    """A well-formed request to look again: what was asked, and what is granted after clamping."""

    asked: TimeSpan
    asked_fps: float
    span: TimeSpan  # within the clip
    fps: float  # within the limits and the native frame rate
    num_frames: int  # floor(span * fps), at least 1, at most the caps
    clamped: tuple[str, ...] = ()  # which of "start", "end", "fps", "frames" were changed

    @property
    def tool(self) -> str:
        """`span_fps`: the calls of other tools are ToolCalls."""
        return SPAN_FPS


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A well-formed request of any other tool, as it is granted."""

    tool: str  # its name
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)  # numbers, texts and tuples of them, by name
    clamped: tuple[str, ...] = ()  # which of the arguments were changed
    span: TimeSpan | None = None  # of the clip that it looks at; a moment begins where it ends; None: of none
    box: tuple[float, ...] | None = None  # of the frame, in thousandths: left, top, right, bottom; None: all of it
    num_frames: int = 0  # that it inserts; an image is one
    asked_box: tuple[float, ...] | None = None  # as it was written, where that is another


@dataclass(frozen=True, slots=True)
class MalformedCall:
    """A request whose text cannot be read. The policy is told why and goes on; the segment counts as a failed call."""

    reason: str
    tool: str = SPAN_FPS


@dataclass(frozen=True, slots=True)
class RefusedCall:
    """A request that is readable but not granted: over the limit, outside the clip, reversed, or without room.

    As after a malformed one, the policy is told why and goes on, and the segment counts as a failed call.
    """

    reason: str
    tool: str = SPAN_FPS


GrantedCall = RetrievalCall | ToolCall
Call = GrantedCall | MalformedCall | RefusedCall  # a request of the policy
