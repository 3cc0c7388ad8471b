"""One checkpoint: what lies in its folder, and how it is read. No torch here: files and nothing else.

    step_00000020/
        manifest.json       size and SHA-256 of every other file; written last
        state.json          RunState
        score.json          the value of trainer.best_metric, if the policy was evaluated at this step
        config.yaml         the resolved configuration
        kernels.json        what the bits of a deterministic run depend on (rl.policy.kernels); other runs have none
        sampled_steps.json.gz  steps sampled ahead (rl.checkpoint.sampled_steps); other runs have none
        policy/             the policy as a Hugging Face folder, for use elsewhere
        rank_0.safetensors  what learner rank 0 needs to go on (rl.learner.state); one file per rank

Nothing that is read is trusted: sizes and hashes are compared with the manifest, values are checked.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from rl.checkpoint.manifest import MANIFEST, DamagedError, files_under, require_whole
from rl.trajectory import RunState

log = logging.getLogger(__name__)

STATE, CONFIG, SCORE, KERNELS = "state.json", "config.yaml", "score.json", "kernels.json"
POLICY_FOLDER = "policy"


@dataclass(frozen=True, slots=True)
class Score:
    """What a policy was worth: a metric's name, with "-" before it if lower is better, and its value."""

    metric: str
    value: float

    @property
    def rank(self) -> float:
        """The higher the better."""
        return -self.value if self.metric.startswith("-") else self.value


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A published checkpoint whose files are what the manifest says."""

    folder: Path
    state: RunState
    config_yaml: str


def checkpoint_name(step: int) -> str:
    """The name of the folder."""
    return f"step_{step:08d}"


def step_of(folder: Path) -> int:
    """The step of a checkpoint, by the name of its folder."""
    return int(folder.name.rpartition("_")[2])


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Read a checkpoint after comparing every file with the manifest.

    Raises:
        DamagedError: it is not there, incomplete or altered; says which file.
    """
    folder = Path(folder)
    require_whole(folder)
    try:
        state = _run_state(json.loads((folder / STATE).read_text(encoding="utf-8")))
        return Checkpoint(folder, state, (folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise DamagedError(f"{folder}: not readable: {error}") from error


def read_score(folder: Path) -> Score | None:
    """The score of a complete checkpoint; None if it was not evaluated, or cannot be read (which is logged)."""
    if not (folder / MANIFEST).is_file() or not (folder / SCORE).is_file():
        return None
    try:
        score = Score(**json.loads((folder / SCORE).read_text(encoding="utf-8")))
        return score if math.isfinite(score.value) else None
    except (OSError, TypeError, ValueError) as error:
        log.warning("%s: passed over: %s", folder / SCORE, error)
        return None


def read_kernels(folder: Path) -> dict[str, str]:
    """What the run that wrote a checkpoint computed with; empty if it was not deterministic.

    Raises:
        DamagedError: the file is not a mapping of strings.
    """
    if not (folder / KERNELS).is_file():
        return {}
    try:
        kernels = json.loads((folder / KERNELS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{folder / KERNELS}: not readable: {error}") from error
    if not isinstance(kernels, dict) or not all(isinstance(value, str) for value in kernels.values()):
        raise DamagedError(f"{folder / KERNELS}: expected names and values, got {kernels!r:.80}")
    return kernels


def num_bytes(folder: Path) -> int:
    """Size of all files."""
    return sum(path.stat().st_size for path in files_under(folder))


def _run_state(saved: dict[str, object]) -> RunState:
    state = RunState(**saved)  # type: ignore[arg-type] - looked at next
    for name, value in asdict(state).items():
        if type(value) is not int or abs(value) >= 2**63 or (name != "seed" and value < 0):
            raise ValueError(f"{STATE} says {name} is {value!r:.80}")
    return state
