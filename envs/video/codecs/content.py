"""What is known of a packet's content."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Content(NamedTuple):
    """What a packet does to the screen and to the decoder."""

    is_shown: bool  # one picture comes out for it that is shown
    is_entry: bool  # decoding may begin here: what is shown from here on is as if it had begun at the start
    order: int | None = None  # pictures are shown in the order of this number; None: not known


ReadContent = Callable[[memoryview, bool], Content]  # a packet's payload, whether the container calls it a keyframe

HIDDEN = Content(is_shown=False, is_entry=False)
SHOWN = Content(is_shown=True, is_entry=False)
ENTRY = Content(is_shown=True, is_entry=True)
