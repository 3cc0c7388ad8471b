"""The supervised stage, run: on every GPU of the run, saved as it goes on, and continued where it was stopped.

Part of the composition root. Its checkpoints lie beside the folder that it makes, under that folder's name, and go when
it is done. One process at a time writes there; another one that makes the same folder works without saving.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from actors.cluster.placement import Slots
from actors.learner import LearnerGroup
from actors.traces import TraceFeed
from envs.data.formats import RetrievalTrace
from rl.checkpoint.checkpoint import Checkpoint
from rl.checkpoint.lease.folder import FolderLease
from rl.checkpoint.lease.holder import this_process
from rl.checkpoint.lease.lease import Lease, LeaseHeldError
from rl.checkpoint.manifest import CheckpointError
from rl.checkpoint.saver import Contents, Saver
from rl.checkpoint.store import CheckpointStore
from rl.config.file import to_yaml
from rl.config.learner import OptimizerConfig
from rl.config.run import RunConfig, without_reference
from rl.learner.partition import require_loadable
from rl.learner.rank_files import LearnerStateError
from rl.learner.sft import run_cold_start
from rl.run.console.stages import progress_bar, say, stage
from rl.run.workers import cold_start_ranks, spawn_learners, spawn_traces
from rl.trajectory import RunState

log = logging.getLogger(__name__)

PROGRESS = ".progress"  # after the name of the folder that is being made


def cold_start(
    config: RunConfig,
    policy_dir: Path,
    traces: Sequence[RetrievalTrace],
    slots: Slots,
    console: Console,
    *,
    home: Path,
    folder: Path,
    begun: list[int],
) -> None:
    """One attempt at the supervised stage: its policy is in `folder`.

    Args:
        home: the folder's place and name once it is whole; checkpoints lie beside it.
        begun: gets every step that was taken.
    Raises:
        LearnerError: a rank was lost. What was saved stays for the next attempt.
        TraceError: no trace is usable, or a worker that replays them was lost.
    """
    declared, ranks = config.cold_start, cold_start_ranks(config)
    optimizer = OptimizerConfig(lr=declared.lr, max_grad_norm=config.learner.optimizer.max_grad_norm)
    with ExitStack() as workers, progress_bar(console) as progress:
        saver, found = workers.enter_context(_saving(config, home, ranks, console))
        pool = spawn_traces(config, policy_dir)
        workers.callback(pool.stop)
        with stage(console, f"starting {ranks} learners for the cold start"):
            learners = spawn_learners(
                without_reference(config),  # supervision has no use for it
                policy_dir,
                slots,
                optimizer=optimizer,
                total_updates=declared.steps,
                kind="cold_start",
                num_ranks=ranks,
            )
        workers.callback(learners.stop)
        first = _continued(learners, found, console)
        workers.enter_context(stage(console, f"cold start of {declared.steps} steps on {len(traces):,} traces"))
        bar = progress.add_task("cold start", total=declared.steps, completed=first)

        def after_step(step: int, metrics: Mapping[str, float]) -> None:
            begun.append(step)
            _show(progress, bar, step, declared.steps, metrics["loss/nll"])
            if saver and declared.save_every and step % declared.save_every == 0 and step < declared.steps:
                saver.save(learners.save, Contents(RunState(step, 0, declared.seed), to_yaml(config)))

        last = run_cold_start(
            learners,
            TraceFeed(pool, traces).samples,
            num_samples=len(traces),
            steps=declared.steps,
            batch_size=declared.batch_size,
            seed=declared.seed,
            progress=after_step,
            first=first,
        )
        learners.export_policy(folder)
    say(console, f"cold start: {last['cold_start/nll_first']:.3f} -> {last['cold_start/nll_last']:.3f} nat per token")


def forget_progress(home: Path) -> None:
    """Remove the checkpoints of a cold start that is done, unless another process goes on from them."""
    if not _progress_of(home).is_dir():
        return
    with suppress(LeaseHeldError, OSError), _lease(home):
        shutil.rmtree(_progress_of(home) / "checkpoints", ignore_errors=True)


@contextmanager
def _saving(
    config: RunConfig, home: Path, ranks: int, console: Console
) -> Iterator[tuple[Saver | None, Checkpoint | None]]:
    """What saves the stage, and the checkpoint to go on from; nothing, where another process makes the same folder."""
    trainer = config.trainer
    with ExitStack() as stack:
        try:
            lease = stack.enter_context(_lease(home))
        except (LeaseHeldError, OSError) as error:
            log.warning("the cold start is not saved as it goes on: %s", error)
            yield None, None
            return
        store = CheckpointStore(_progress_of(home), keep=1)
        found = _usable(store, config, ranks, console)
        limits = {"timeout_s": trainer.save_timeout_s, "max_failed": trainer.max_failed_saves}
        saver = Saver(store, may_write=lease.check, **limits)
        stack.callback(saver.drain)  # its last one may fail: what the stage is for, its policy, is exported
        yield saver, found


def _usable(store: CheckpointStore, config: RunConfig, ranks: int, console: Console) -> Checkpoint | None:
    """The newest checkpoint, if it is whole and these ranks can go on from it."""
    try:
        found = store.latest_valid()
        if found is not None:
            require_loadable(found.folder, config.learner.zero_stage, ranks)
    except (CheckpointError, LearnerStateError) as error:
        say(console, f"the cold start begins anew: {error}")
        return None
    return found


def _continued(learners: LearnerGroup, found: Checkpoint | None, console: Console) -> int:
    """Steps that need not be taken again."""
    if found is None:
        return 0
    with stage(console, f"continuing the cold start at step {found.state.step}"):
        learners.load(found.folder)
    return found.state.step


def _progress_of(home: Path) -> Path:
    return home.with_name(f"{home.name}{PROGRESS}")


def _lease(home: Path) -> Lease:
    return Lease(FolderLease(_progress_of(home)), this_process("", ""))


def _show(progress: Progress, bar: TaskID, step: int, steps: int, nll: float) -> None:
    progress.update(bar, completed=step)
    if step % max(1, steps // 10) == 0:
        say(progress.console, f"cold start {step}/{steps}  {nll:.3f} nat per token")
