"""The stages of a step in one process, of this version or of 0.3.0: rollouts, rewards, update, weights to the engine.

    python ours.py configs/quickstart.yaml KEY=VALUE ...

Run with the root of the version's checkout on PYTHONPATH and as the working directory. One engine rolls out the step's
tasks, as a rollout worker does; their rewards are computed here; one learner rank learns from all of them; what it has
learned is put into the engine. No Ray.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from answering import Contestant  # beside this file

os.environ |= {  # before torch is imported, and in both versions alike
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "TORCHDYNAMO_DISABLE": "1",
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "TOKENIZERS_PARALLELISM": "false",
}

Step = Callable[[int], dict[str, Any]]


def main() -> None:
    """Steps until there is nothing more on stdin."""
    contestant = Contestant()
    files = [argument for argument in sys.argv[1:] if "=" not in argument]
    overrides = [argument for argument in sys.argv[1:] if "=" in argument]
    take_step = stages_030(files, overrides) if Path("rl/stations.py").exists() else stages(files, overrides)
    contestant.answer({"ready": True})
    step = 0
    while contestant.is_to_go_on():
        contestant.answer(take_step(step))
        step += 1


def stages(files: Sequence[str], overrides: Sequence[str]) -> Step:
    """Of this version."""
    from rich.console import Console

    from actors.reward import weighted_rewards
    from envs.data.dataset import tasks_for_step
    from rl.config.file import load_config
    from rl.run.initial_policy import initial_policy
    from rl.run.prepare.tasks import prepare_tasks
    from rl.run.workers import start_learner, start_rollout_runner

    config, console = load_config(list(files), list(overrides)), Console(stderr=True)
    policy_dir = initial_policy(config, console).absolute()
    runner = start_rollout_runner(config, policy_dir)
    return _stages(
        config,
        tasks=prepare_tasks(config, "train", console).tasks,
        tasks_for_step=tasks_for_step,
        roll_out=runner.roll_out,
        engine=runner.engine,
        terms=weighted_rewards(config.rewards),
        learner=start_learner(config, policy_dir, config.learner.optimizer, config.trainer.steps, **_alone()),
    )


def stages_030(files: Sequence[str], overrides: Sequence[str]) -> Step:
    """Of 0.3.0, by its names."""
    from rich.console import Console

    from actors.reward import weighted_rewards
    from envs.dataset import tasks_for_step
    from rl.config_file import load_config
    from rl.inspection import playable_policy
    from rl.prepare import prepare_tasks
    from rl.stations import start_learner, start_player

    config, console = load_config(list(files), list(overrides)), Console(stderr=True)
    policy_dir = playable_policy(config, console).absolute()
    player = start_player(config, policy_dir)
    return _stages(
        config,
        tasks=prepare_tasks(config, "train", console).tasks,
        tasks_for_step=tasks_for_step,
        roll_out=player.play,
        engine=player.engine,
        terms=weighted_rewards(config.rewards),
        learner=start_learner(config, policy_dir, config.learner.optimizer, config.trainer.steps, **_alone()),
    )


def _stages(
    config: Any,
    *,
    tasks: Sequence[Any],
    tasks_for_step: Callable[..., Sequence[Any]],
    roll_out: Callable[..., Any],
    engine: Any,
    terms: Sequence[Any],
    learner: Any,
) -> Step:
    from rewards.scoring import score_group

    def take_step(step: int) -> dict[str, Any]:
        clock = [time.process_time()]
        drawn, groups = tasks_for_step(tasks, config.seed, step, config.rollout.tasks_per_step), []

        async def rolled_out() -> None:  # returns nothing: asyncio.run forms the repr of a result, pixels and all
            groups.extend(await asyncio.gather(*(roll_out(task, step=step, greedily=False) for task in drawn)))

        asyncio.run(rolled_out())
        clock.append(time.process_time())
        learner.learn([score_group(group, terms, calls=config.scoring.calls) for group in groups])
        clock.append(time.process_time())
        engine.load_weights(learner.named_weights(), step + 1)
        clock.append(time.process_time())
        spent = [after - before for before, after in pairwise(clock)]
        return counted(groups) | dict(zip(("rollout", "update", "push"), spent, strict=True))

    return take_step


def counted(groups: Sequence[Any]) -> dict[str, float]:
    """Means over trajectories: tokens of the opening, written, given later; turns."""
    trajectories = [trajectory for group in groups for trajectory in group.trajectories_G]
    turns = [turn for trajectory in trajectories for turn in trajectory.turns]
    opening = sum(len(trajectory.turns[0].context_token_ids) for trajectory in trajectories)
    given = sum(len(turn.context_token_ids) for turn in turns) - opening
    written = sum(len(turn.completion.token_ids) for turn in turns)
    named = {"opening_tokens": opening, "sampled_tokens": written, "given_tokens": given, "turns": len(turns)}
    return {name: count / len(trajectories) for name, count in named.items()}


def _alone() -> dict[str, Any]:
    """A rendezvous with nobody."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {"rank": 0, "world_size": 1, "master_addr": "127.0.0.1", "master_port": port}


if __name__ == "__main__":
    main()
