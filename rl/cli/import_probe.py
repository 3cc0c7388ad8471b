"""Whether imports work, tried in a process of their own: a library built for another machine can end it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import IO

PROGRAM = """
import gc, json, os, sys
gc.disable()  # imports allocate much and free little: a sixth of the processor time
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print is no answer
for subject, statement in json.loads(sys.argv[1]).items():
    try:
        exec(statement)
        detail = ""
    except BaseException as error:
        detail = f"{type(error).__name__}: {error}"
    print(json.dumps([subject, detail]), file=answers, flush=True)
os._exit(0)  # no library's clean-up
"""
GONE_S = 30.0  # for a killed process to be gone
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}


class Outcome(StrEnum):
    """What came of an import."""

    WORKS = "works"
    FAILS = "fails"
    SLOW = "slow"  # no answer in time: nothing is known


@dataclass(frozen=True, slots=True)
class Probe:
    """One import tried."""

    outcome: Outcome
    detail: str = ""


def probe_imports(statements: Mapping[str, str], timeout_s: float) -> dict[str, Probe]:
    """Run statements one after the other, sharing what they import; after one that ends the process, in a new one.

    Args:
        statements: by subject.
        timeout_s: for all of them together.
    """
    deadline_s, waiting, found = time.monotonic() + timeout_s, dict(statements), {}
    while waiting:
        answered = dict(_answers(waiting, deadline_s - time.monotonic()))
        found |= answered
        waiting = {subject: statement for subject, statement in waiting.items() if subject not in answered}
        if not answered:
            break
    return found | {subject: Probe(Outcome.SLOW) for subject in waiting}


def _answers(statements: Mapping[str, str], timeout_s: float) -> Iterator[tuple[str, Probe]]:
    """What one process said in time; if it ended early, the statement that ended it has failed."""
    with tempfile.TemporaryFile("w+", errors="replace") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM, json.dumps(dict(statements))],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=os.environ | QUIET,
        )
        try:
            lines, ended = process.communicate(timeout=max(timeout_s, 0.0))[0], True
        except subprocess.TimeoutExpired:
            process.kill()
            lines, ended = process.communicate(timeout=GONE_S)[0], False
        left = list(statements)
        for line in lines.splitlines():
            subject, detail = json.loads(line)
            left.remove(subject)
            yield subject, Probe(Outcome.FAILS if detail else Outcome.WORKS, " ".join(detail.split())[:300])
        if ended and left:
            yield left[0], Probe(Outcome.FAILS, f"the process ended ({process.returncode}): {_last_line(stderr)}")


def _last_line(stderr: IO[str]) -> str:
    stderr.seek(0)
    lines = stderr.read().strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"
