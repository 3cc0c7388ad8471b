"""What a tool of the policy is: its tags, its grammar, what a call costs, and what it inserts.

A policy asks by writing; the engine stops at the last of the tool's tags, the environment reads the request, inserts
what was asked for, and the policy goes on. The turn that ends in a request is of the SAMPLING segment, whichever tool
it is of. Two tools are built in, `span_fps` and `zoom`; yours is an object with the shape of `Tool`, named
"path/file.py:NAME" under `retrieval.tools`.

Legend: T frames · H W pixels · C colours (RGB).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rl.trajectory import Call, GrantedCall

if TYPE_CHECKING:
    import numpy as np

Box = tuple[float, float, float, float]  # left, top, right, bottom, in thousandths of a frame's width and height


@dataclass(frozen=True, slots=True)
class Shown:
    """Frames that a tool inserts, as one video block; an image is one scene of repeated frames."""

    pixels_THWC: np.ndarray  # uint8 RGB
    times_s_T: tuple[float, ...]  # on the clip's clock, not decreasing


Insertion = Shown | str  # frames, an image, or text


class ClipView(Protocol):
    """The clip of an episode as its tools see it, and what showing parts of it costs in tokens."""

    @property
    def path(self) -> str:
        """Absolute."""

    @property
    def extra(self) -> Mapping[str, Any]:
        """Further columns of the task's row."""

    @property
    def duration_s(self) -> float: ...
    @property
    def native_fps(self) -> float:
        """Not positive or not finite: not known."""

    @property
    def height(self) -> int:
        """Of a frame as it is displayed, in pixels."""

    @property
    def width(self) -> int: ...

    def frames(self, times_s: Sequence[float], max_pixels: int) -> Shown:
        """The frames on screen at these times, each of `max_pixels` at most."""

    def frames_tokens(self, times_s: Sequence[float], max_pixels: int) -> int:
        """Tokens that such frames take at most."""

    def image(self, time_s: float, box: Box, max_pixels: int) -> Shown:
        """A region of the frame on screen, cut out of its original pixels and brought to about `max_pixels`."""

    def image_tokens(self, box: Box, max_pixels: int) -> int:
        """Tokens that such an image takes."""

    def picture(self, pixels_HWC: np.ndarray, time_s: float, max_pixels: int) -> Shown:
        """A picture of the tool's own (uint8 RGB), brought to about `max_pixels`."""

    def picture_tokens(self, height: int, width: int, max_pixels: int) -> int:
        """Tokens that a picture of this shape takes."""

    def text_tokens(self, text: str) -> int:
        """Tokens that a text takes where it is inserted."""


class Tool(Protocol):
    """A tool. One object serves many episodes, in several threads at once."""

    @property
    def name(self) -> str:
        """In metrics, records and reports; letters, digits and _."""

    @property
    def tags(self) -> tuple[str, ...]:
        """The markers that a request is written with, each a single token of the policy; the last ends a request."""

    @property
    def nothing(self) -> str:
        """What the policy is told it did not get, as "no frames", where a call is not granted."""

    def parse(self, text: str, clip: ClipView) -> Call:
        """The request that a text ends in: granted, or malformed or refused for a named reason. Never raises."""

    def tokens(self, call: GrantedCall, clip: ClipView) -> int:
        """What `insert` will insert of it at most."""

    def shrink(self, call: GrantedCall, clip: ClipView, room: int) -> Call:
        """A call of which no more than `room` tokens remain to be inserted: less of it, or a refusal."""

    def insert(self, call: GrantedCall, clip: ClipView) -> Insertion:
        """What was asked for.

        Raises:
            VideoError: the clip cannot be read.
        """
