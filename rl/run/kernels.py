"""A deterministic run computes with the same kernels in every worker and attempt, or says that it does not.

Part of the composition root.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from actors.rollout_group import RolloutError, RolloutWorkerGroup
from rl.checkpoint.checkpoint import Checkpoint, read_kernels
from rl.config.errors import ConfigError
from rl.policy.kernels import kernel_changes

TIMEOUT_S = 60.0  # for every worker to answer


def common_kernels(workers: RolloutWorkerGroup, found: Checkpoint | None, say: Callable[[str], None]) -> dict[str, str]:
    """What the bits of all workers' results depend on; said in a line, and in another if the checkpoint's differs.

    Raises:
        ConfigError: the workers' kernels differ, so that a trajectory depends on which worker rolls it out.
        RolloutError: no worker answered.
    """
    by_worker = workers.kernels(timeout_s=TIMEOUT_S)
    if not by_worker:
        raise RolloutError(f"rollout.deterministic: no worker named its kernels within {TIMEOUT_S:.0f} s")
    (first, kernels), *others = by_worker.items()
    for name, theirs in others:
        if changes := kernel_changes(kernels, theirs):
            raise ConfigError(
                f"rollout.deterministic: {first} and {name} compute with different kernels ({'; '.join(changes)}); "
                "give the run nodes with one kind of processor, or set rollout.deterministic=false"
            )
    say(_described(kernels))
    before = {} if found is None else read_kernels(found.folder)  # empty: of a run that promised no bits
    if before and (changes := kernel_changes(before, kernels)):
        say(
            f"{found.folder.name} was computed with other kernels, so the steps from here on are not those, bit for "
            f"bit, of the run that wrote it: {'; '.join(changes)}"
        )
    return kernels


def _described(kernels: Mapping[str, str]) -> str:
    products = f"products in {kernels['products']}" if kernels["products"] else "one request at a time"
    return f"deterministic: {products}, on {kernels['processor']} with {kernels['instructions']}"
