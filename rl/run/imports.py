"""How the heavy libraries of a process are imported."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Imports without garbage collection: they make a million objects that stay, and a collector that looks at them
    again and again takes an eighth of an engine's start. Nor does it look at them afterwards."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
