"""A profile of what a process computes: torch's profiler over all of its threads, in the form that Chrome reads."""

from __future__ import annotations

from pathlib import Path

import torch
from torch._C._profiler import _ExperimentalConfig

SUFFIX = ".json.gz"


class Profiler:
    """Begins when it is made; there can be one at a time in a process.

    profiler = Profiler()
    ...                                         # in any thread
    profiler.write(Path("learner_0.json.gz"))      # may be another thread than the one that began it
    """

    def __init__(self) -> None:
        kinds = torch.profiler.ProfilerActivity
        activities = [kinds.CPU, kinds.CUDA] if torch.cuda.is_available() else [kinds.CPU]
        # by default torch records the thread alone that asks; an engine computes in one of its own
        everywhere = _ExperimentalConfig(profile_all_threads=True)
        self._profile = torch.profiler.profile(activities=activities, experimental_config=everywhere)
        self._profile.start()

    def write(self, path: Path) -> None:
        """End it, and write what was recorded.

        Args:
            path: ends in SUFFIX; its folder is made.
        Raises:
            OSError: it cannot be written.
        """
        self._profile.stop()
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}")  # torch compresses by the suffix
        self._profile.export_chrome_trace(str(draft))
        draft.replace(path)
