"""`dynframe eval`: a suite rolled out greedily through the pools of training, and scored. Part of the composition root.

Everything lands in eval/NAME of the run whose policy it is (rl.evaluation.predictions says what); an evaluation that
was interrupted is resumed by the same command.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console

from actors.cluster.placement import Demand
from rl.checkpoint.checkpoint import POLICY_FOLDER, Checkpoint
from rl.checkpoint.store import CHECKPOINTS
from rl.config.errors import ConfigError
from rl.config.file import stored_settings, to_dict
from rl.config.run import RunConfig
from rl.evaluation.evaluate import is_done, roll_out_remaining
from rl.evaluation.predictions import (
    EVALUATIONS,
    EXAMPLES,
    METRICS,
    REJECTED,
    PredictionFile,
    open_folder,
    write_json,
)
from rl.evaluation.scorers import benchmark_scorer, rescored, reward_scorer
from rl.evaluation.suite import POLICY_KEYS, EvaluationSuite, examples_of, identity_of, limited, make_suite
from rl.evaluation.summary import make_report, print_report
from rl.run.console.stages import counted_stage, say
from rl.run.initial_policy import initial_policy
from rl.run.preflight.rewards import require_rewards
from rl.run.prepare.policy import require_given_policy
from rl.run.prepare.tasks import ROWS_IN_LOG
from rl.run.resume import changed_meaning, checkpoint_of
from rl.run.workers import cluster, spawn_rewards, starting_rollouts
from rl.tracking.log_file import keep_log

log = logging.getLogger(__name__)

WRITTEN_BY_EXPORT = (
    "processor_config.json",
    "video_preprocessor_config.json",
)  # for others
POLICY_FILES = {".safetensors", ".json", ".txt", ".jinja"}  # that decide what a policy writes


def run_evaluation(
    config: RunConfig, console: Console, *, run: Path | None = None, best: bool = False, restart: bool = False
) -> dict[str, Any]:
    """Evaluate a policy; returns what lies in metrics.json.

    Args:
        run: take the policy of this run's newest checkpoint, or of this checkpoint, and keep the results with that
            run; None: the policy and the run that the config names.
        best: of the run, take the best checkpoint instead.
        restart: move an earlier evaluation of that name aside.
    Raises:
        ConfigError: data, policy or the evaluation's folder cannot be used, or its results are of other settings.
        RolloutError, RewardError: workers failed. What was finished is kept.
    """
    home, origin = Path(config.output_dir).absolute() / config.name, {}
    if run is not None:
        found = checkpoint_of(run.absolute(), best=best)
        config, origin = with_policy_of(found, config, console)
        home = found.folder.parents[1] if found.folder.parent.name == CHECKPOINTS else home
    require_given_policy(config)  # before clips are rendered or indexed
    if not config.evaluation.benchmark:  # scored by the rewards
        require_rewards(config)
    suite = make_suite(config, console)
    policy_dir = initial_policy(config, console)
    identity = identity_of(config, suite, policy_sha256(policy_dir))
    folder = home / EVALUATIONS / (config.evaluation.name or suite.name)
    suite = limited(suite, config.evaluation.limit)
    with open_folder(folder, identity, restart=restart) as file, keep_log(folder):
        say(console, f"evaluation: {folder}")
        write_json(folder / EXAMPLES, examples_of(suite))
        _report_rejected(suite, folder / REJECTED, config.data.bad_rows)
        done = sum(is_done(file.outcomes.get(example.task.task_id)) for example in suite.examples)
        if done:
            say(console, f"{done} of {len(suite.examples)} examples are done already")
        if done < len(suite.examples):
            _roll_out_remaining(config, suite, policy_dir, file, done, console)
        for outcome in rescored(suite, [file.outcomes[example.task.task_id] for example in suite.examples]):
            file.append(outcome)
        outcomes = [file.outcomes[example.task.task_id] for example in suite.examples]
    policy = {**origin, "folder": str(policy_dir.absolute()), "sha256": identity["policy"]}
    report = make_report(config, suite, outcomes, identity, policy)
    write_json(folder / METRICS, report)
    print_report(report, console)
    return report


def with_policy_of(found: Checkpoint, config: RunConfig, console: Console) -> tuple[RunConfig, dict[str, Any]]:
    """The same configuration with the policy of a checkpoint, and where that comes from."""
    changed = changed_meaning(
        stored_settings(found.config_yaml, f"{found.folder}/config.yaml"), to_dict(config), meaning=POLICY_KEYS
    )
    if changed:
        say(console, f"other settings than it was trained with: {'; '.join(changed)}")
    config = replace(
        config,
        policy=replace(config.policy, path=str(found.folder / POLICY_FOLDER), revision=""),
        cold_start=replace(config.cold_start, enabled=False),
    )
    state = found.state
    return config, {"checkpoint": str(found.folder), "step": state.step, "version": state.policy_version}


def policy_sha256(folder: Path) -> str:
    """Sixteen hex digits that change with any weight, with the tokenizer, and with the policy's settings."""
    digest = hashlib.sha256()
    files = sorted(path for path in folder.iterdir() if path.suffix in POLICY_FILES and path.is_file())
    for path in files:
        if path.name in WRITTEN_BY_EXPORT:
            continue
        with _without_auto_map(path) as content:
            digest.update(f"{path.name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def _without_auto_map(path: Path) -> BinaryIO:
    """A file's bytes; those of an export's config.json as they were in the checkpoint."""
    config = json.loads(path.read_bytes()) if path.name == "config.json" else {}
    if "auto_map" not in config:
        return path.open("rb")
    del config["auto_map"]
    return io.BytesIO(f"{json.dumps(config, indent=2, sort_keys=True)}\n".encode())


def _roll_out_remaining(
    config: RunConfig, suite: EvaluationSuite, policy_dir: Path, file: PredictionFile, done: int, console: Console
) -> None:
    """Workers up, the rest of the examples through them, workers down."""
    own, tasks = suite.metric is None, [example.task for example in suite.examples]
    demand = Demand(config.rollout.num_workers, config.scoring.num_workers if own else 0, learner=0)
    with cluster(config, policy_dir, console, demand) as slots:
        with starting_rollouts(config, policy_dir, slots, console) as rollouts:
            rewards = spawn_rewards(config, slots, rollouts) if own else None
        scorer = reward_scorer(suite, rewards, config, rollouts.load) if own else benchmark_scorer(suite, rollouts.load)
        with counted_stage(console, f"evaluating {suite.name}", len(tasks), done=done) as evaluating:
            roll_out_remaining(
                tasks,
                rollouts=rollouts,
                scorer=scorer,
                file=file,
                in_flight=config.evaluation.in_flight,
                report=lambda _: evaluating.advance(),
            )


def _report_rejected(suite: EvaluationSuite, home: Path, bad_rows: str) -> None:
    """Every row left out goes to a file; the first ones to the log, unless that was done already.

    Raises:
        ConfigError: there are any, and data.bad_rows=refuse.
    """
    for window in suite.left_out[:ROWS_IN_LOG]:
        log.warning("line %d: the question is asked, but %s", window.line, window.reason)
    if not suite.rejected:
        home.unlink(missing_ok=True)  # of an earlier version of the data
        return
    told = [{key: value for key, value in asdict(row).items() if value != ""} for row in suite.rejected]
    home.write_text("".join(json.dumps(row) + "\n" for row in told), encoding="utf-8")
    if suite.metric is None:
        return
    for row in suite.rejected[:ROWS_IN_LOG]:
        log.warning("line %d: left out: %s", row.line, row.reason)
    log.warning("%d rows left out, each with its reason in %s", len(suite.rejected), home)
    if bad_rows == "refuse":
        raise ConfigError(f"{len(suite.rejected)} bad rows, all in {home}; data.bad_rows=skip leaves them out")
