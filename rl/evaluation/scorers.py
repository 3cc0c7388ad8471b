"""What scores an evaluation's examples: a benchmark's metric, or the run's rewards. Part of the composition root."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from actors.reward import RewardError, RewardPool
from envs.benchmarks.benchmark import Example, Prediction
from envs.benchmarks.prediction import prediction_of, read_leniently, said_in_the_end
from rewards.failures import cause_key, cause_line
from rl.config.run import RunConfig
from rl.evaluation.evaluate import ExampleScore, Scorer, missing_prediction, outcome_of
from rl.evaluation.predictions import EvaluationError, Outcome
from rl.evaluation.readings import both_accuracies, both_readings
from rl.evaluation.suite import EvaluationSuite
from rl.group_summary import RemoteGroup
from rl.run.reporter import answer_terms
from rl.tracking.held_out import EVALUATION_STEP
from rl.trajectory import RewardFailure, SegmentRewards, TimeSpan, Trajectory, TrajectoryGroup

log = logging.getLogger(__name__)

Load = Callable[[Sequence[RemoteGroup]], Sequence[TrajectoryGroup]]


def benchmark_scorer(suite: EvaluationSuite, load: Load) -> Scorer:
    """The benchmark's metric on what could be parsed from each trajectory.

    Args:
        load: fetches groups with their texts.
    """

    def score_all(finished: Sequence[tuple[int, RemoteGroup]]) -> list[Outcome]:
        groups = load([group for _, group in finished])
        return [
            replace(score(place, group.trajectories_G[0]), duration_s=group.duration_s or None)
            for (place, _), group in zip(finished, groups, strict=True)
        ]

    def score(place: int, trajectory: Trajectory) -> Outcome:
        example = suite.examples[place]
        prediction = None if missing_prediction(trajectory) else prediction_of(trajectory)
        return _outcome(example, place, trajectory, _values(suite, example, prediction), prediction)

    return score_all


def rescored(suite: EvaluationSuite, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those of a benchmark's outcomes whose metrics are others by now, with the metrics of today.

    They are of an earlier version, in which the benchmark had other metrics: a mean over both would be neither's.
    """
    if suite.metric is None:
        return []
    changed = []
    for example, outcome in zip(suite.examples, outcomes, strict=True):
        windows = tuple(TimeSpan(start_s, end_s) for start_s, end_s in outcome.windows_s)
        prediction = Prediction(outcome.answer, windows, said_in_the_end(outcome.text))
        values = _values(suite, example, None if outcome.missing else prediction)
        if values != outcome.metrics:
            changed.append(replace(outcome, metrics=values))
    return changed


def _values(suite: EvaluationSuite, example: Example, prediction: Prediction | None) -> dict[str, float]:
    try:
        strict, read = suite.metric(example, prediction), read_leniently(prediction, example.task)
        lenient = strict if read == prediction else suite.metric(example, read)
        return {name: float(value) for name, value in both_readings(strict, lenient).items()}
    except Exception as error:  # of a benchmark's own code, which may be a user's
        raise EvaluationError(
            f"{suite.name}: its metric failed on task {example.task.task_id}: {type(error).__name__}: {error}"
        ) from error


def reward_scorer(suite: EvaluationSuite, rewards: RewardPool, config: RunConfig, load: Load) -> Scorer:
    """The run's rewards, under the names they have as held-out metrics of a training run; `load` as above.

    The scorer raises RewardError when more than scoring.max_failed_share of the suite could not be scored.
    """
    failures: list[RewardFailure] = []
    causes: set[tuple[object, ...]] = set()  # told already
    terms, allowed = answer_terms(config), config.scoring.max_failed_share * len(suite.examples)

    def score_all(finished: Sequence[tuple[int, RemoteGroup]]) -> list[Outcome]:
        scored = rewards.score_all([group for _, group in finished], step=EVALUATION_STEP)
        groups = load([one.group for one in scored])
        outcomes = [
            replace(score(place, group.trajectories_G[0], *one.rewards_G), duration_s=group.duration_s or None)
            for (place, _), group, one in zip(finished, groups, scored, strict=True)
        ]
        if len(failures) > allowed:
            raise RewardError(
                f"{len(failures)} of {len(suite.examples)} examples could not be scored (scoring.max_failed_share="
                f"{config.scoring.max_failed_share:g}); first: {cause_line(failures[0])}"
            )
        return outcomes

    def score(place: int, trajectory: Trajectory, reward: SegmentRewards | RewardFailure) -> Outcome:
        example = suite.examples[place]
        prediction = None if missing_prediction(trajectory) else prediction_of(trajectory)
        if prediction is None:  # no rewards, but not because one failed
            return _outcome(example, place, trajectory, {}, None)
        if isinstance(reward, RewardFailure):
            failures.append(reward)
            if (key := cause_key(reward)) not in causes:
                causes.add(key)
                log.warning("%s", cause_line(reward))
            failed = f"{reward.term} {reward.cause}: {reward.detail}"
            return _outcome(example, place, trajectory, {}, prediction, failed)
        values = reward_values(reward, prediction, terms)
        values |= both_accuracies(example.task, trajectory) if terms else {}
        return _outcome(example, place, trajectory, values, prediction)

    return score_all


def reward_values(rewards: SegmentRewards, prediction: Prediction, terms: Sequence[str]) -> dict[str, float]:
    """The rewards of a trajectory as values of metrics.

    Args:
        terms: names of the reward terms that score the answer; their mean is the accuracy.
    """
    answers = [rewards.breakdown[name] for name in terms if name in rewards.breakdown]
    return {
        "reward_reasoning": rewards.reasoning,
        **({} if rewards.sampling is None else {"reward_sampling": rewards.sampling}),
        **({"accuracy": fmean(answers)} if answers else {}),
        **{f"term/{name}": value for name, value in rewards.breakdown.items()},
        "unparsed": float(prediction.answer is None),
    }


def _outcome(
    example: Example,
    place: int,
    trajectory: Trajectory,
    values: Mapping[str, float],
    prediction: Prediction | None,
    failed: str | None = None,
) -> Outcome:
    windows = () if prediction is None else prediction.windows
    score = ExampleScore(
        values,
        None if prediction is None else prediction.answer,
        tuple((window.start_s, window.end_s) for window in windows),
        failed,
    )
    return outcome_of(example.task.task_id, place, example.group, trajectory, score)
