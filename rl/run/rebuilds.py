"""Attempt after attempt, until a run is done: learners that are lost are rebuilt from the newest checkpoint.

Part of the composition root. The steps since that checkpoint are repeated. Engines and reward workers are replaced
within an attempt.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from actors.learner_group import LearnerGroup
from actors.pending_write import LearnerError
from actors.sleeping_engines import SleepingEngines
from actors.weight_buckets import WeightsLostError
from actors.worker.waiting import POLL_S
from rl.checkpoint.checkpoint import Checkpoint
from rl.run.attempt import Attempt
from rl.run.console.stages import stage
from rl.run.run import Run
from rl.run.workers import spawn_learners
from rl.trajectory import Fault

log = logging.getLogger(__name__)

LOOK_AHEAD_POLL_S = 0.05  # between two looks at rollouts that run while the learners work


def train_to_the_end(run: Run, found: Checkpoint | None) -> None:
    """From a checkpoint, or the start, to the last step.

    Raises:
        LearnerError: learners were lost more than learner.max_rebuilds times without getting any further, or never
            came up.
        StopRequested: a signal came; the run is saved at the step it had reached.
        LeaseLostError: another process has taken over.
        UnwrittenError: metrics, records or faults could not be written for too many steps in a row, or at the end.
    """
    with run.backlog:
        try:
            _attempts(run, found)
        finally:
            if run.has_begun:
                run.backlog.retry()  # a file that can be written again is among the faults
                run.put_faults(run.step, run.take_faults(unfinished=True))
                run.say_repeated_failures()


def _attempts(run: Run, found: Checkpoint | None) -> None:
    lost, furthest, rebuilds = None, 0, 0
    while True:
        try:
            with _learners(run, found) as learners:
                if not run.has_begun:
                    run.begin()
                if lost is not None:
                    run.faults.append(_recovered(lost, found))
                    lost = None
                Attempt(run, learners, found).train()
            return
        except (LearnerError, WeightsLostError) as error:
            furthest, rebuilds = max(furthest, run.step), rebuilds + 1 if run.step <= furthest else 1
            if not run.has_begun or rebuilds > run.config.learner.max_rebuilds:
                raise
            log.warning("learners are lost and rebuilt from the newest checkpoint: %s", error)
            failure = error.failure if isinstance(error, LearnerError) else None
            lost = lost or Fault("learner_lost", "learner", str(error), "", time.time(), 0.0, failure)
            run.saver.drain()
            found = run.saver.newest() or found


@contextmanager
def _learners(run: Run, found: Checkpoint | None) -> Iterator[LearnerGroup]:
    """Learner ranks at the state of a checkpoint, or at the start; killed in the end, whatever happens."""
    config = run.config
    if run.given_up is not None:
        SleepingEngines(run.rollouts.workers, drops_weights=run.given_up.weights).sleep()
    with stage(run.console, f"starting {config.learner.num_ranks} learners"):
        learners = spawn_learners(
            config,
            run.policy_dir,
            run.slots,
            optimizer=config.learner.optimizer,
            total_updates=config.trainer.steps * config.learner.updates_per_step,
            poll=run.sampler.poll,
            poll_every_s=LOOK_AHEAD_POLL_S if config.trainer.max_policy_lag else POLL_S,
            restore=run.restore,
        )
    try:
        if found:
            with stage(run.console, f"loading the checkpoint of step {found.state.step}"):
                learners.load(found.folder)
        yield learners
    finally:
        learners.stop()


def _recovered(lost: Fault, found: Checkpoint | None) -> Fault:
    step = found.state.step if found else 0
    seconds = time.time() - lost.detected_s
    log.warning("learners are back after %.1f s, at step %d", seconds, step)
    action = f"rebuilt from the checkpoint of step {step}" if found else "rebuilt at the start"
    return replace(lost, action=action, recovery_s=seconds)
