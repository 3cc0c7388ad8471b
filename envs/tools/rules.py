"""The limits of what a policy may ask for."""

from __future__ import annotations

from dataclasses import dataclass

from rl.trajectory import SPAN_FPS

NUMBER = r"-?+(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)"  # as tools read it; possessive: nothing is ever tried twice


@dataclass(frozen=True, slots=True)
class RetrievalRules:
    """What a request of the policy may ask for."""

    max_calls: int = 1  # granted calls per trajectory, of all tools together; 1 is the paper, 0 turns retrieval off
    min_window_s: float = 0.1
    max_fps: float = 10.0
    max_frames: int = 32  # per call
    max_pixels: int = 151_200  # per frame
    min_fps: float = 0.0  # a lower rate is raised to it
    tools: tuple[str, ...] = (SPAN_FPS,)  # that the policy may call: built-in names, or "module:NAME"
    zoom_max_pixels: int = 151_200  # of the image that `zoom` inserts
    tool_timeout_s: float = 60.0  # of a call of a user's tool

    @property
    def look_pixels(self) -> int:
        """Of a frame at most, in looks that may come; 0: none will."""
        return self.max_pixels if self.max_calls and SPAN_FPS in self.tools else 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "tools", tuple(self.tools))
        if self.max_calls < 0 or self.max_frames < 1:
            raise ValueError(f"max_calls must be >= 0 and max_frames >= 1, got {self.max_calls}, {self.max_frames}")
        if not (self.max_fps > 0 and self.min_window_s >= 0):
            raise ValueError(f"max_fps must be > 0 and min_window_s >= 0, got {self.max_fps}, {self.min_window_s}")
        if not 0 <= self.min_fps <= self.max_fps:
            raise ValueError(f"min_fps must be between 0 and max_fps ({self.max_fps:g}), got {self.min_fps:g}")
