"""The contestant's end of a side-by-side measurement: a process that takes a step whenever it is told to.

Imports nothing of this project, since contestants run in other environments and of other versions.

    stdin   "step\\n" or, at the end, nothing more
    stdout  {"ready": ...}, then one line of JSON per step: what was done in it. Whatever else is printed goes to stderr
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


class Contestant:
    """Speaks with the program that measures; made before anything that prints."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def answer(self, done: dict[str, Any]) -> None:
        """Say that the start, or a step, is done."""
        self._answers.write(json.dumps(done) + "\n")
        self._answers.flush()

    def is_to_go_on(self) -> bool:
        """Wait to be told; False: it is over."""
        return sys.stdin.readline() != ""
