"""The engine driver: what runs vLLM on a thread of its own, behind one protocol for CPU and CUDA.

A driver takes requests from any thread, answers with concurrent futures, and runs an action with no request in flight
when weights are replaced. There are two: actors.engine.inline_driver (CPU) and actors.engine.async_driver (CUDA).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Any, Protocol

from vllm import RequestOutput, SamplingParams
from vllm.inputs import TokensPrompt

FlatWeight = tuple[str, str, list[int], memoryview]  # Hugging Face name, dtype, shape, bytes
WITH_WEIGHTS, WITHOUT_WEIGHTS = 1, 2  # vLLM's levels of sleep: weights in main memory, or nowhere
TIMEOUT_S = 600.0  # for a start, for running requests to end, or for one call to the workers: beyond it, vLLM hangs


class Driver(Protocol):
    """Runs vLLM on its own thread; every wait for that thread has a deadline."""

    def submit(self, name: str, prompt: TokensPrompt, params: SamplingParams) -> Future[RequestOutput]:
        """Start a request."""

    def exclusively(self, action: Callable[[Driver], Any]) -> Any:
        """Run `action` while no request runs, and return its result.

        Raises:
            TimeoutError: the requests running did not end, or the action did not.
        """

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """A method of rl.policy.vllm.live_weights.LiveWeights on every worker of the engine; their answers, by rank."""

    def put_weights(self, bucket: Sequence[FlatWeight]) -> None:
        """Overwrite parameters on every worker of the engine. Only inside `exclusively`."""

    def set_weight_version(self, version: str) -> None:
        """Set the version that later completions carry."""

    def reset_caches(self) -> None:
        """Drop cached prefixes, encoded videos and processed items. Only inside `exclusively`."""

    def sleep(self, level: int) -> None:
        """Give the KV cache up, and at WITHOUT_WEIGHTS the weights; nothing is answered until both are awake again."""

    def wake(self, memory: str) -> None:
        """Take "weights" or "kv_cache" back."""

    def progress(self) -> int:
        """A counter that grows while vLLM works on requests; never blocks."""

    def failure(self) -> str:
        """Why vLLM has died; empty while it lives."""

    def close(self) -> None:
        """Stop."""


def result_within(timeout_s: float, future: Future[Any], doing: str) -> Any:
    """A future's result; a future that is not done in time is cancelled.

    Raises:
        TimeoutError: no result within `timeout_s`; anything else is the future's own error.
    """
    done, _ = wait([future], timeout=timeout_s)
    if not done:
        future.cancel()
        raise TimeoutError(f"the engine did not {doing} within {timeout_s:.0f} s")
    return future.result()


def settle(future: Future[Any], result: Any = None, *, error: BaseException | None = None) -> None:
    """Resolve a future, unless it was cancelled."""
    if not future.set_running_or_notify_cancel():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
