"""The cold start: supervised training on retrieval traces, on every GPU of the run, into a folder of the cache.

Part of the composition root. Its checkpoints lie beside the folder that it makes, under that folder's name, and go when
it is done. One process at a time writes there; another one that makes the same folder works without saving.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from actors.cluster.placement import Slots
from envs.data.formats import RetrievalTrace
from rl.checkpoint.checkpoint import Checkpoint
from rl.checkpoint.lease.folder import FolderLease
from rl.checkpoint.lease.holder import this_process
from rl.checkpoint.lease.lease import Lease, LeaseHeldError
from rl.checkpoint.manifest import CheckpointError
from rl.checkpoint.saver import Saver
from rl.checkpoint.store import CheckpointStore
from rl.config.learner import OptimizerConfig
from rl.config.run import RunConfig
from rl.learner.partition import require_loadable
from rl.learner.rank_files import LearnerStateError
from rl.run.console.stages import progress_bar, say, stage
from rl.run.supervised import SupervisedStage, supervised_attempt
from rl.run.workers import cold_start_ranks

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
    taken: Callable[[], None],
) -> None:
    """One attempt at the supervised stage: its policy is in `folder`.

    Args:
        home: the folder's place and name once it is whole; checkpoints lie beside it.
        taken: called after every step.
    Raises:
        LearnerError: a rank was lost. What was saved stays for the next attempt.
        SampleError: no trace is usable, or a worker that replays them was lost.
    """
    given = _stage(config, policy_dir, traces)
    with ExitStack() as workers, progress_bar(console) as progress:
        saver, found = workers.enter_context(_saving(config, home, given.num_ranks, console))
        attempt = workers.enter_context(supervised_attempt(given, slots, console, saver, found))
        workers.enter_context(stage(console, f"cold start of {given.steps} steps on {len(traces):,} traces"))
        bar = progress.add_task("cold start", total=given.steps, completed=attempt.reached)

        def after_step(step: int, metrics: Mapping[str, float]) -> None:
            taken()
            _show(progress, bar, step, given.steps, metrics["loss/nll"])

        losses = attempt.train(after_step)
        attempt.learners.export_policy(folder)
    say(console, f"cold start: {losses.first:.3f} -> {losses.last:.3f} nat per token")


def _stage(config: RunConfig, policy_dir: Path, traces: Sequence[RetrievalTrace]) -> SupervisedStage:
    declared = config.cold_start
    return SupervisedStage(
        name="cold start",
        config=config,
        policy_dir=policy_dir,
        examples=traces,
        optimizer=OptimizerConfig(lr=declared.lr, max_grad_norm=config.learner.optimizer.max_grad_norm),
        steps=declared.steps,
        batch_size=declared.batch_size,
        seed=declared.seed,
        save_every=declared.save_every,
        saves_last=False,  # the folder is exported
        num_ranks=cold_start_ranks(config),
        max_tokens=config.rollout.engine.max_model_len,
        num_workers=config.rollout.num_workers,
        kind="cold_start",
    )


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


def _progress_of(home: Path) -> Path:
    return home.with_name(f"{home.name}{PROGRESS}")


def _lease(home: Path) -> Lease:
    return Lease(FolderLease(_progress_of(home)), this_process("", ""))


def _show(progress: Progress, bar: TaskID, step: int, steps: int, nll: float) -> None:
    progress.update(bar, completed=step)
    if step % max(1, steps // 10) == 0:
        say(progress.console, f"cold start {step}/{steps}  {nll:.3f} nat per token")
