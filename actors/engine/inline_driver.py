"""The engine driver on CPU: a thread that steps an LLMEngine in this process."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from vllm import EngineArgs, RequestOutput, SamplingParams
from vllm.inputs import TokensPrompt
from vllm.v1.engine.llm_engine import LLMEngine

from actors.engine.driver import TIMEOUT_S, WITHOUT_WEIGHTS, Driver, FlatWeight, result_within, settle
from rl.policy.vllm.plugin import CPU_ENVIRONMENT, ENVIRONMENT


class InlineDriver:
    """An LLMEngine in this process, owned by one thread that adds requests, steps, and resolves futures.

    One per process at a time: vLLM keeps its parallel state in globals, which an engine that ends tears down.
    """

    _engine_lock = threading.Lock()

    def __init__(self, arguments: dict[str, Any]) -> None:
        """
        Raises:
            RuntimeError: this process has an engine already, or vLLM cannot start.
            TimeoutError: vLLM does not start.
        """
        if not self._engine_lock.acquire(blocking=False):
            raise RuntimeError("this process holds an engine already: close it first, or use another process")
        self._inbox: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._running: dict[str, Future[RequestOutput]] = {}
        self._waiting: _Job | None = None  # an exclusive action, until the requests before it are done
        self._stopped: BaseException | None = None
        self._lock = threading.Lock()  # nothing enters the inbox once the thread has stopped
        self._steps = 0
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run_engine, args=(arguments, ready), name="vllm", daemon=True)
        self._thread.start()
        result_within(TIMEOUT_S, ready, "start")

    def submit(self, name: str, prompt: TokensPrompt, params: SamplingParams) -> Future[RequestOutput]:
        return self._post(_Job(Future(), lambda: self._engine.add_request(name, prompt, params), name))

    def exclusively(self, action: Callable[[Driver], Any]) -> Any:
        job = _Job(Future(), lambda: action(self))
        return result_within(TIMEOUT_S, self._post(job), "do a job between requests")

    def call(self, method: str, *arguments: Any) -> list[Any]:
        return self._engine.collective_rpc(method, args=arguments)

    def put_weights(self, bucket: Sequence[FlatWeight]) -> None:
        self.call("put_weights", bucket)  # the worker is in this process and reads them where they lie

    def set_weight_version(self, version: str) -> None:
        self._engine.set_weight_version(version)

    def reset_caches(self) -> None:
        self._engine.reset_mm_cache()
        self._engine.reset_encoder_cache()
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("the prefix cache is in use")

    def sleep(self, level: int) -> None:
        self.exclusively(lambda _: self._engine.sleep(level=level))
        if level == WITHOUT_WEIGHTS:  # vLLM for CPUs gives nothing up, and nobody would see what a push leaves out
            self.call("spoil_weights")

    def wake(self, memory: str) -> None:
        self.exclusively(lambda _: self._engine.wake_up([memory]))

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

    def _run_engine(self, arguments: dict[str, Any], ready: Future[None]) -> None:
        try:
            prepare_cpu_process()
            # two "API processes": processed videos are kept on one side only; mirrored caches in one process drift
            self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments, _api_process_count=2))
            logging.getLogger("vllm").setLevel(ENVIRONMENT["VLLM_LOGGING_LEVEL"])
        except BaseException as error:  # the constructor raises it
            self._engine_lock.release()
            ready.set_exception(error)
            return
        ready.set_result(None)
        stopped: BaseException = RuntimeError("the engine was closed")
        try:
            self._loop()
        except BaseException as error:  # the thread ends; every waiting request fails with it
            stopped = error
        self._stop(stopped)
        self._engine.engine_core.shutdown()
        self._engine_lock.release()

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
        except Exception as error:  # raised where the action was submitted
            settle(self.future, error=error)


def prepare_cpu_process() -> None:
    """Set what vLLM reads late. OMP_NUM_THREADS counts only if set before torch is imported: see engine_environment."""
    os.environ.update(ENVIRONMENT | CPU_ENVIRONMENT)
    torch._dynamo.config.disable = True
