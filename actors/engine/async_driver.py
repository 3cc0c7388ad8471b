"""The engine driver on CUDA: a thread that runs an AsyncLLM, whose engine has processes of its own."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any

from vllm import RequestOutput, SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import TokensPrompt
from vllm.v1.engine.async_llm import AsyncLLM

from actors.engine.driver import TIMEOUT_S, Driver, FlatWeight, result_within
from actors.engine.memory_file import MemoryFile
from rl.policy.vllm.plugin import ENVIRONMENT


class AsyncDriver:
    """An AsyncLLM, its engine in processes of its own, on a thread with an event loop.

    The engine processes answer calls between two of their steps: an answered call counts as progress.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._answered, self._question = 0, None
        self._transit = MemoryFile()
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

    def call(self, method: str, *arguments: Any) -> list[Any]:
        return self._wait(self._llm.collective_rpc(method, args=arguments))

    def put_weights(self, bucket: Sequence[FlatWeight]) -> None:
        ranges = self._transit.write([data for *_, data in bucket])
        described = [(*weight[:3], *range_) for weight, range_ in zip(bucket, ranges, strict=True)]
        self.call("map_weights", self._transit.path, described)

    def set_weight_version(self, version: str) -> None:
        self._wait(self._llm.update_weight_version(version))

    def reset_caches(self) -> None:
        self._wait(self._llm.reset_mm_cache())
        self._wait(self._llm.reset_encoder_cache())
        if not self._wait(self._llm.reset_prefix_cache()):
            raise RuntimeError("the prefix cache is in use")

    def sleep(self, level: int) -> None:
        self._wait(self._llm.sleep(level=level, mode="wait"))

    def wake(self, memory: str) -> None:
        self._wait(self._llm.wake_up([memory]))

    def progress(self) -> int:
        if self._question is not None and self._question.done():
            self._answered += not self._question.cancelled() and self._question.exception() is None
            self._question = None
        if self._question is None:
            call = self._llm.collective_rpc("count_encoded_items")
            self._question = asyncio.run_coroutine_threadsafe(call, self._loop)
        return self._answered

    def failure(self) -> str:
        return str(self._llm.dead_error) if self._llm.errored else ""

    def close(self) -> None:
        self._llm.shutdown()
        del self._llm
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=60)
        self._transit.close()

    async def _start(self, arguments: dict[str, Any]) -> AsyncLLM:
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))

    async def _last_output(self, name: str, prompt: TokensPrompt, params: SamplingParams) -> RequestOutput:
        """The finished request; sent again if the engine had evicted a video that this side took for cached."""
        for attempt in (name, f"{name}#again"):
            async for output in self._llm.generate(prompt, params, attempt):
                last = output
            if last.outputs[0].finish_reason != "error":
                break
        return last

    def _wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        answer = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return result_within(TIMEOUT_S, answer, coroutine.__name__.strip("_"))
