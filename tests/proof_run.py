"""A small deterministic run for the tests of resume and faults: faults and kills leave no trace in it.

Five clips, four tasks a step: an epoch ends inside every step but the first. Of two siblings, many are equal, so that
dynamic sampling redraws some groups.
"""

from pathlib import Path

from rich.console import Console

from rl.config.file import load_config
from rl.fault_injection.compared_runs import Runs

STEPS = 5
QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
SMALL = (
    "data.quickstart.train_clips=5",
    "data.quickstart.held_out_clips=4",
    "cold_start.steps=60",
    "rollout.num_workers=2",
    "rollout.tasks_per_step=4",
    "rollout.group_size=2",
    "rollout.deterministic=true",
    "rollout.stall_timeout_s=5",
    "video.decode_timeout_s=4",
    "learner.timeout_s=60",
    "algorithm.dynamic_sampling=1",
    "trainer.eval_tasks=0",
)


def runs_in(home: Path) -> Runs:
    """Runs of that configuration, each in its own folder of `home`, with one cache."""
    config = load_config([QUICKSTART], [*SMALL, f"cache_dir={home}/cache"])
    return Runs(config, home, total_steps=STEPS, console=Console(quiet=True), timeout_s=1800)
