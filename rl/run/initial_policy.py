"""The policy that reinforcement learning starts from: the configured one, or what the supervised stage makes of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

from actors.cluster.placement import Slots
from actors.learner import LearnerError
from actors.traces import TraceError, TraceFeed
from envs.data.formats import RetrievalTrace
from rl.config.file import to_dict
from rl.config.learner import OptimizerConfig
from rl.config.run import RunConfig, without_reference
from rl.learner.sft import run_cold_start
from rl.policy.scenes import fingerprint as scenes_fingerprint
from rl.run.console.stages import progress_bar, say, stage
from rl.run.prepare.built_once import built_once, fingerprint
from rl.run.prepare.policy import prepare_policy
from rl.run.prepare.tasks import prepare_traces
from rl.run.workers import cluster, spawn_learners, spawn_traces

log = logging.getLogger(__name__)


def initial_policy(config: RunConfig, console: Console) -> Path:
    """The policy a run would start reinforcement learning from."""
    policy_dir = prepare_policy(config, console)
    if not config.cold_start.enabled:
        return policy_dir
    if (home := cold_start_home(config, policy_dir, prepare_traces(config, console))).is_dir():
        return home  # no learners are needed
    with cluster(config, console) as slots:
        return cold_started_policy(config, policy_dir, slots, console)


def cold_started_policy(config: RunConfig, policy_dir: Path, slots: Slots, console: Console) -> Path:
    """The policy after the supervised stage, from the cache if everything it depends on is the same."""
    traces = prepare_traces(config, console)
    home = cold_start_home(config, policy_dir, traces)
    if home.is_dir():
        say(console, f"cold start: found in {home}")
    begun: list[int] = []  # steps of the attempt under way: what fails before the first would fail again

    def attempt(folder: Path) -> None:
        begun.clear()
        _cold_start(config, policy_dir, traces, slots, console, folder, begun)

    for _ in range(config.learner.max_rebuilds):
        try:
            return built_once(home, attempt)
        except (LearnerError, TraceError) as error:
            if not begun:
                raise
            log.warning("a worker of the cold start is lost, it begins again: %s", error)
    return built_once(home, attempt)


def cold_start_home(config: RunConfig, policy_dir: Path, traces: Sequence[RetrievalTrace]) -> Path:
    """The folder of the policy after the supervised stage; not there before that has run."""
    return Path(config.cache_dir) / f"cold-start-{cold_start_fingerprint(config, policy_dir, traces)}"


def cold_start_fingerprint(config: RunConfig, policy_dir: Path, traces: Sequence[RetrievalTrace]) -> str:
    """Names the outcome of the supervised stage: changes with anything that it depends on."""
    made_from = {
        "policy": _policy_identity(policy_dir, Path(config.cache_dir)),
        "scenes": scenes_fingerprint(config.policy.scenes),
        "dtype": config.policy.dtype,
        "traces": fingerprint([[t.task.task_id, t.task.video_path, t.task.question, *t.replies] for t in traces]),
        **{section: to_dict(getattr(config, section)) for section in ("cold_start", "video", "retrieval", "prompt")},
        "max_model_len": config.rollout.engine.max_model_len,
        "freeze_vision": config.learner.freeze_vision,
        "max_grad_norm": config.learner.optimizer.max_grad_norm,
    }
    return fingerprint(made_from)


def _policy_identity(policy_dir: Path, cache_dir: Path) -> Any:
    """Folders in the cache are named after what they were made from; of others, the place and the weights' files."""
    folder = policy_dir.resolve()
    if folder.is_relative_to(cache_dir.resolve()):
        return folder.name
    weights = sorted((file.name, file.stat()) for file in folder.glob("*.safetensors"))
    return [str(folder), [[name, status.st_size, status.st_mtime_ns] for name, status in weights]]


def _cold_start(
    config: RunConfig,
    policy_dir: Path,
    traces: Sequence[RetrievalTrace],
    slots: Slots,
    console: Console,
    folder: Path,
    begun: list[int],
) -> None:
    """One attempt; `begun` gets every step it took."""
    declared = config.cold_start
    optimizer = OptimizerConfig(lr=declared.lr, max_grad_norm=config.learner.optimizer.max_grad_norm)
    with ExitStack() as workers, progress_bar(console) as progress:
        pool = spawn_traces(config, policy_dir)
        workers.callback(pool.stop)
        with stage(console, f"starting {config.learner.num_ranks} learners for the cold start"):
            learners = spawn_learners(
                without_reference(config),  # supervision has no use for it
                policy_dir,
                slots,
                optimizer=optimizer,
                total_updates=declared.steps,
                name="cold-start",
            )
        workers.callback(learners.stop)
        workers.enter_context(stage(console, f"cold start of {declared.steps} steps on {len(traces):,} traces"))
        bar = progress.add_task("cold start", total=declared.steps)

        def show(step: int, metrics: Mapping[str, float]) -> None:
            begun.append(step)
            _show(progress, bar, step, declared.steps, metrics["loss/nll"])

        last = run_cold_start(
            learners,
            TraceFeed(pool, traces).samples,
            num_samples=len(traces),
            steps=declared.steps,
            batch_size=declared.batch_size,
            seed=declared.seed,
            progress=show,
        )
        learners.export_policy(folder)
    say(console, f"cold start: {last['cold_start/nll_first']:.3f} -> {last['cold_start/nll_last']:.3f} nat per token")


def _show(progress: Progress, bar: TaskID, step: int, steps: int, nll: float) -> None:
    progress.update(bar, completed=step)
    if step % max(1, steps // 10) == 0:
        say(progress.console, f"cold start {step}/{steps}  {nll:.3f} nat per token")
