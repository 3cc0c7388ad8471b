"""Who runs vLLM: a thread that steps an engine in this process (CPU), or one that talks to engine processes (GPU).

Both take requests from any thread, answer with concurrent futures, and run an action alone, with no request in flight,
when weights are replaced.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from vllm import EngineArgs, RequestOutput, SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import TokensPrompt
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.llm_engine import LLMEngine

from rl.policy.vllm_plugin import CPU_ENVIRONMENT, ENVIRONMENT

PATIENCE_S = 600.0  # for a start, for running requests to end, or for one call to the workers: beyond it, it hangs


class Driver(Protocol):
    """Runs vLLM on its own thread. Whatever waits for that thread gives up with a TimeoutError in the end."""

    def submit(self, name: str, prompt: TokensPrompt, params: SamplingParams) -> Future[RequestOutput]:
        """Start a request."""

    def exclusively(self, action: Callable[[Driver], Any]) -> Any:
        """Run `action` while no request runs, and return its result.

        Raises:
            TimeoutError: the requests running did not end, or the action did not.
        """

    def call(self, method: str, *arguments: Any) -> Any:
        """A method of rl.policy.vllm_model.LiveWeights on the worker; rank 0's answer."""

    def set_weight_version(self, version: str) -> None:
        """Name the weights that later tokens are drawn with."""

    def reset_caches(self) -> None:
        """Forget prefixes, encoded videos and processed items. Only inside `exclusively`."""

    def progress(self) -> int:
        """Grows as long as vLLM works on requests; asking never waits."""

    def failure(self) -> str:
        """Why no request will be answered any more; empty while vLLM lives."""

    def close(self) -> None:
        """Stop."""


class InlineDriver:
    """An LLMEngine in this process, owned by one thread that adds requests, steps, and resolves futures.

    One at a time in a process: vLLM keeps its parallel state in globals, and an engine that ends takes them along.
    """

    _alive = threading.Lock()

    def __init__(self, arguments: dict[str, Any]) -> None:
        """
        Raises:
            RuntimeError: this process has an engine already, or vLLM cannot start.
            TimeoutError: vLLM does not come up.
        """
        if not self._alive.acquire(blocking=False):
            raise RuntimeError("this process holds an engine already: close it first, or use another process")
        self._inbox: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._running: dict[str, Future[RequestOutput]] = {}
        self._waiting: _Job | None = None  # an exclusive job, until the requests before it are done
        self._stopped: BaseException | None = None
        self._lock = threading.Lock()  # nothing enters the inbox once the thread has stopped
        self._steps = 0
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._live, args=(arguments, ready), name="vllm", daemon=True)
        self._thread.start()
        result_within(PATIENCE_S, ready, "start")

    def submit(self, name: str, prompt: TokensPrompt, params: SamplingParams) -> Future[RequestOutput]:
        return self._post(_Job(Future(), lambda: self._engine.add_request(name, prompt, params), name))

    def exclusively(self, action: Callable[[Driver], Any]) -> Any:
        job = _Job(Future(), lambda: action(self))
        return result_within(PATIENCE_S, self._post(job), "do a job between requests")

    def call(self, method: str, *arguments: Any) -> Any:
        return self._engine.collective_rpc(method, args=arguments)[0]

    def set_weight_version(self, version: str) -> None:
        self._engine.set_weight_version(version)

    def reset_caches(self) -> None:
        self._engine.reset_mm_cache()
        self._engine.reset_encoder_cache()
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("the prefix cache is in use")

    def progress(self) -> int:
        return self._steps

    def failure(self) -> str:
        return "" if self._stopped is None else f"{type(self._stopped).__name__}: {self._stopped}"

    def close(self) -> None:
        self._inbox.put(None)
        self._thread.join(timeout=60)

    def _post(self, job: _Job) -> Future[Any]:
        with self._lock:
            if self._stopped is None:
                self._inbox.put(job)
            else:
                settle(job.future, error=self._stopped)
        return job.future

    def _live(self, arguments: dict[str, Any], ready: Future[None]) -> None:
        try:
            prepare_cpu_process()
            # two "API processes": processed videos are kept on one side only; mirrored caches in one process drift
            self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments, _api_process_count=2))
            logging.getLogger("vllm").setLevel(ENVIRONMENT["VLLM_LOGGING_LEVEL"])
        except BaseException as error:  # whatever it was, the constructor waits for it
            self._alive.release()
            ready.set_exception(error)
            return
        ready.set_result(None)
        stopped: BaseException = RuntimeError("the engine was closed")
        try:
            self._loop()
        except BaseException as error:  # the thread ends here, and whoever waits must hear of it
            stopped = error
        self._stop(stopped)
        self._engine.engine_core.shutdown()
        self._alive.release()

    def _loop(self) -> None:
        while True:
            while self._waiting is None and not (self._running and self._inbox.empty()):
                job = self._inbox.get()
                if job is None:
                    return
                if job.name is not None:
                    self._add(job)
                elif self._running:
                    self._waiting = job
                else:
                    job.run()
            self._step()
            if self._waiting is not None and not self._running:
                self._waiting.run()
                self._waiting = None

    def _add(self, job: _Job) -> None:
        if job.future.cancelled():
            return
        try:
            job.action()
        except Exception as error:  # a request that cannot be served fails alone
            settle(job.future, error=error)
        else:
            self._running[job.name] = job.future

    def _step(self) -> None:
        for name in [name for name, future in self._running.items() if future.cancelled()]:
            self._engine.abort_request([name])
            del self._running[name]
        for output in self._engine.step():
            if output.finished and output.request_id in self._running:
                settle(self._running.pop(output.request_id), output)
        self._steps += 1

    def _stop(self, cause: BaseException) -> None:
        with self._lock:
            self._stopped = cause
        pending = [*self._running.values(), *([self._waiting.future] if self._waiting else [])]
        while not self._inbox.empty():
            if (job := self._inbox.get()) is not None:
                pending.append(job.future)
        for future in pending:
            settle(future, error=cause)


@dataclass(frozen=True, slots=True)
class _Job:
    """Something for the engine's thread: a request, if it has a name, or an exclusive action."""

    future: Future[Any]
    action: Callable[[], Any]
    name: str | None = None

    def run(self) -> None:
        if self.future.cancelled():
            return
        try:
            settle(self.future, self.action())
        except Exception as error:  # it belongs to whoever asked
            settle(self.future, error=error)


class AsyncDriver:
    """An AsyncLLM, its engine in processes of its own, on a thread with an event loop.

    What those processes do between requests cannot be seen from here. They answer calls between two of their steps, so
    an answered call is progress.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._answered, self._asked = 0, None
        os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        self._llm: AsyncLLM = self._wait(self._start(arguments))

    def submit(self, name: str, prompt: TokensPrompt, params: SamplingParams) -> Future[RequestOutput]:
        return asyncio.run_coroutine_threadsafe(self._last_output(name, prompt, params), self._loop)

    def exclusively(self, action: Callable[[Driver], Any]) -> Any:
        self._wait(self._llm.pause_generation(mode="wait", clear_cache=False))
        try:
            return action(self)
        finally:
            self._wait(self._llm.resume_generation())

    def call(self, method: str, *arguments: Any) -> Any:
        return self._wait(self._llm.collective_rpc(method, args=arguments))[0]

    def set_weight_version(self, version: str) -> None:
        self._wait(self._llm.update_weight_version(version))

    def reset_caches(self) -> None:
        self._wait(self._llm.reset_mm_cache())
        self._wait(self._llm.reset_encoder_cache())
        if not self._wait(self._llm.reset_prefix_cache()):
            raise RuntimeError("the prefix cache is in use")

    def progress(self) -> int:
        if self._asked is not None and self._asked.done():
            self._answered += not self._asked.cancelled() and self._asked.exception() is None
            self._asked = None
        if self._asked is None:
            question = self._llm.collective_rpc("count_encoded_items")
            self._asked = asyncio.run_coroutine_threadsafe(question, self._loop)
        return self._answered

    def failure(self) -> str:
        return str(self._llm.dead_error) if self._llm.errored else ""

    def close(self) -> None:
        self._llm.shutdown()
        del self._llm
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=60)

    async def _start(self, arguments: dict[str, Any]) -> AsyncLLM:
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))

    async def _last_output(self, name: str, prompt: TokensPrompt, params: SamplingParams) -> RequestOutput:
        """The finished request; sent twice if the engine had dropped a video this side took for cached."""
        for attempt in (name, f"{name}#again"):
            async for output in self._llm.generate(prompt, params, attempt):
                last = output
            if last.outputs[0].finish_reason != "error":
                break
        return last

    def _wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        answer = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return result_within(PATIENCE_S, answer, coroutine.__name__.strip("_"))


def prepare_cpu_process() -> None:
    """Set what vLLM reads late. OMP_NUM_THREADS counts only if set before torch is imported: see engine_environment."""
    os.environ.update(ENVIRONMENT | CPU_ENVIRONMENT)
    torch._dynamo.config.disable = True


def result_within(timeout_s: float, future: Future[Any], doing: str) -> Any:
    """A future's result; what is not done by then is called off.

    Raises:
        TimeoutError: no result within `timeout_s`; anything else is the future's own error.
    """
    done, _ = wait([future], timeout=timeout_s)
    if not done:
        future.cancel()
        raise TimeoutError(f"the engine did not {doing} within {timeout_s:.0f} s")
    return future.result()


def settle(future: Future[Any], result: Any = None, *, error: BaseException | None = None) -> None:
    """Resolve a future, unless nobody waits for it any more."""
    if not future.set_running_or_notify_cancel():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
