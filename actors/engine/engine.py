"""The door to vLLM: token ids in, token ids and their log-probs out, weights replaced between requests.

    caller's event loop --request--> driver --> vLLM          one driver per engine, chosen by device:
                        <--output--                           CPU: InlineDriver, a thread that steps an LLMEngine
                                                              CUDA: AsyncDriver, a thread that runs an AsyncLLM

Log-probs are of the distribution sampled from: logits over temperature, ids the policy may not write removed (by the
model itself, see rl.policy.vllm.scene_engine), so they compare with the learner's one to one.

Legend: T tokens of a prompt.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vllm import RequestOutput, SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.inputs import TokensPrompt
from vllm.logprobs import FlatLogprobs
from vllm.platforms import current_platform

from actors.engine.counters import Counters
from actors.engine.driver import TIMEOUT_S, WITH_WEIGHTS, WITHOUT_WEIGHTS, Driver, result_within, settle
from actors.engine.sampling import PLAIN_OUTPUT, sampling_params
from actors.engine.settings import engine_arguments
from actors.engine.weights import PARTIAL, live_checksums, receive_weights, replace_weights
from rl.config.errors import ConfigError
from rl.config.installation import missing_library
from rl.config.policy import PolicyConfig
from rl.config.rollout import EngineConfig
from rl.policy.batch_invariant import PADDINGS
from rl.policy.kernels import kernel_identity, processor
from rl.policy.processor import Processor
from rl.trajectory import Completion, Frames, GenerateRequest
from rl.weight_transfer.description import WeightTensor
from rl.weight_transfer.meeting import MeetingPoint

log = logging.getLogger(__name__)


class EngineError(RuntimeError):
    """vLLM could not do what a request asked; the message names the request and the cause."""

    def __init__(self, request_id: str, cause: object) -> None:
        super().__init__(f"engine request {request_id!r}: {cause}")
        self.request_id = request_id


class VllmEngine:
    """A policy in vLLM. Many `generate` calls may run at once, from any event loop."""

    def __init__(
        self,
        policy_dir: str | Path,
        policy: PolicyConfig,
        engine: EngineConfig,
        seed: int,
        *,
        version: int = 0,
        deterministic: bool = False,
        sleeps: bool = False,
        driver: Callable[[dict[str, Any]], Driver] | None = None,
    ) -> None:
        """
        Args:
            policy_dir: an ordinary Hugging Face folder of ours.
            version: of the weights in that folder.
            deterministic: on CPU in float32, what a request draws depends on the request and the weights alone, bit for
                bit, log-probs included; elsewhere less depends on the batch, and nothing is promised.
            sleeps: it may be told to `sleep`, which takes another allocator on CUDA.
            driver: None: InlineDriver on CPU, AsyncDriver on CUDA.
        Raises:
            ConfigError: `deterministic` cannot be kept on this machine, or vLLM lacks a library of the system.
        """
        self._processor = Processor.from_pretrained(policy_dir, policy.scenes)
        on_cpu = current_platform.is_cpu()
        if on_cpu and (missing := missing_library()):
            raise ConfigError(missing)
        arguments = engine_arguments(
            policy_dir, policy, engine, seed, on_cpu=on_cpu, deterministic=deterministic, sleeps=sleeps
        )
        self._driver = (driver or driver_of(on_cpu))(arguments)
        self._serial = itertools.count()
        self._counters = Counters()
        self._lock = threading.Lock()
        self._driver.exclusively(lambda driver: driver.set_weight_version(str(version)))
        self.policy_version = version
        self.row_padding = ""  # of products, in words; empty: rows are as they come
        if deterministic and on_cpu and engine.max_num_seqs > 1:
            self.row_padding = self._require_batch_invariance()
        self._encoded_before = self._encoded_items()

    async def generate(self, request: GenerateRequest) -> Completion:
        """Draw tokens until a stop token (returned, with its log-prob) or the budget.

        Raises:
            EngineError: the request does not fit, its placeholders and videos do not match, the weights are of no one
                version, or the engine failed.
        """
        name, token_ids, videos = request.request_id, request.prompt_token_ids, request.videos
        try:
            params = sampling_params(request.sampling)
        except VLLMValidationError as error:
            raise EngineError(name, error) from error
        return _completion(name, await asyncio.wrap_future(self._submit(name, token_ids, videos, params)))

    def score(self, token_ids: Sequence[int], videos: Sequence[Frames], request_id: str = "score") -> list[float]:
        """Log-prob of every token given those before it, at temperature 1, over the ids the policy may write.

        Returns:
            One number per token, in nats; 0 for the first, -inf for ids the policy may not write (placeholders).
        """
        params = SamplingParams(
            temperature=1.0,
            max_tokens=1,
            prompt_logprobs=0,  # of the prompt's own tokens only
            **PLAIN_OUTPUT,
        )
        output = result_within(TIMEOUT_S, self._submit(request_id, token_ids, videos, params), "score")
        return [0.0, *_logprobs_of(token_ids[1:], output.prompt_logprobs)]

    def load_weights(self, named: Iterable[tuple[str, torch.Tensor | np.ndarray]], version: int) -> dict[str, str]:
        """Replace parameters between requests, then drop every cache that the old ones filled.

        Waits for the requests running; those submitted meanwhile wait for the new weights. A part of the parameters
        may be given; the others stay as they are.

        Args:
            named: Hugging Face names with values; a uint16 array holds the bits of bfloat16.
            version: of the policy from now on; every later completion carries it.
        Returns:
            Checksums of what the model then holds under these names, as from `checksums`.
        Raises:
            EngineError: a name or shape is not the model's, or the weights stopped coming. No request is answered until
                others have been loaded.
        """
        try:
            held = self._driver.exclusively(partial(replace_weights, named=named, version=version))
        except Exception as error:
            raise EngineError(f"weights {version}", error) from error
        self.policy_version = version
        return held

    def open_link(self, point: MeetingPoint, first_member: int) -> None:
        """Have every worker of the engine meet the sender of weights.

        Args:
            first_member: of the link: the worker of rank 0.
        Raises:
            EngineError: they did not meet.
        """
        try:
            self._driver.call("init_weight_transfer_engine", {"point": astuple(point), "first_member": first_member})
        except Exception as error:
            raise EngineError("link", error) from error

    def receive_weights(self, buckets: Sequence[Sequence[WeightTensor]], version: int) -> list[str]:
        """As `load_weights`, of what comes over the link.

        Returns:
            Names of parameters of which the engine then holds other values than the sender.
        Raises:
            EngineError: the weights stopped coming. No request is answered until others have been loaded.
        """
        try:
            differing = self._driver.exclusively(partial(receive_weights, buckets=buckets, version=version))
        except Exception as error:
            raise EngineError(f"weights {version}", error) from error
        self.policy_version = version
        return differing

    def checksums(self, names: Sequence[str]) -> dict[str, str]:
        """Checksums of live parameters by Hugging Face name, summed where the model runs (rl.weight_transfer.checksum).

        On several GPUs every one of them sums its own shards; where replicas contradict each other, all are given.

        Raises:
            EngineError: no such parameter.
        """
        try:
            return self._driver.exclusively(partial(live_checksums, names=names))
        except Exception as error:
            raise EngineError("checksums", error) from error

    def sleep(self, *, drops_weights: bool = False) -> None:
        """Give the accelerator's memory up between two steps: weights to main memory, the KV cache for good.

        Waits for the requests running. On CPU no memory is given up, but nothing is answered until both are awake.

        Args:
            drops_weights: weights for good, too: `load_weights` or `receive_weights` has to bring all of them.
        """
        self._driver.sleep(WITHOUT_WEIGHTS if drops_weights else WITH_WEIGHTS)

    def wake(self, memory: str) -> None:
        """Take "weights" or "kv_cache" back; of an engine that is awake nothing changes."""
        self._driver.wake(memory)

    def stats(self) -> dict[str, float]:
        """What the engine did since the last call of this method, see Counters."""
        encoded = self._encoded_items()
        with self._lock:
            counters, self._counters = self._counters, Counters()
            counters.encoder_items, self._encoded_before = encoded - self._encoded_before, encoded
        return {name: float(getattr(counters, name)) for name in Counters.__slots__}

    def device_memory_mib(self) -> float:
        """What the engine holds on its accelerator, on the fullest of several; 0: it has none."""
        return max(self._driver.call("device_memory_mib"))

    def begin_profile(self) -> None:
        """Begin to record what the engine computes."""
        self._driver.call("begin_profile")

    def write_profile(self, path: Path) -> list[str]:
        """Write what has been recorded; returns the names of the files, one per GPU.

        Raises:
            OSError: they cannot be written.
        """
        return self._driver.call("write_profile", str(path))

    def kernels(self) -> dict[str, str]:
        """What the bits of this engine's results depend on, besides weights and requests."""
        return kernel_identity(self.row_padding)

    def progress(self) -> int:
        """Grows as long as the engine works on requests; asking never waits."""
        return self._driver.progress()

    def failure(self) -> str:
        """Why the engine will not answer any more; empty while it lives."""
        return self._driver.failure()

    def close(self) -> None:
        """Stop the engine; requests still running fail."""
        self._driver.close()

    def _require_batch_invariance(self) -> str:
        """Choose how the rows of products are padded; returns it in words."""
        start_s = time.perf_counter()
        padding, varying = self._driver.exclusively(lambda driver: driver.call("make_batch_invariant", PADDINGS))[0]
        if varying:
            self.close()
            raise ConfigError(
                f"rollout.deterministic: on this machine ({processor()}) bits depend on the batch in "
                f"{', '.join(varying[:3])}{' …' if len(varying) > 3 else ''}, with products in {padding}; set "
                "rollout.engine.max_num_seqs=1 (slow: one request at a time), or rollout.deterministic=false"
            )
        log.info("batch-invariant: products in %s, probed in %.2f s", padding, time.perf_counter() - start_s)
        return padding

    def _submit(
        self, request_id: str, token_ids: Sequence[int], videos: Sequence[Frames], params: SamplingParams
    ) -> Future[RequestOutput]:
        """Send a request; its checked and counted output will be in the future.

        Raises:
            EngineError: placeholders without a video, which vLLM would take for text until it dies of them.
        """
        if not videos and self._processor.ids.video_pad in token_ids:
            raise EngineError(request_id, "the prompt holds video placeholders, but no video comes with it")
        prompt = TokensPrompt(prompt_token_ids=list(token_ids))
        if videos:
            prompt["multi_modal_data"] = {"video": [partial(self._processor.pack, video) for video in videos]}
            prompt["multi_modal_uuids"] = {"video": [video.digest for video in videos]}
        answer: Future[RequestOutput] = Future()
        sent = self._driver.submit(f"{request_id}#{next(self._serial)}", prompt, params)
        answer.add_done_callback(lambda _: sent.cancel())  # a caller who gives up stops the request
        sent.add_done_callback(partial(self._answer, answer, request_id, tuple(token_ids), time.monotonic()))
        return answer

    def _answer(
        self,
        answer: Future[RequestOutput],
        request_id: str,
        token_ids: tuple[int, ...],
        start: float,
        sent: Future[RequestOutput],
    ) -> None:
        if sent.cancelled():
            return
        if (error := sent.exception()) is not None:
            settle(answer, error=EngineError(request_id, str(error) or error.__cause__))
            return
        output = sent.result()
        partly = [span.version for span in output.outputs[0].weight_versions if span.version.startswith(PARTIAL)]
        if partly:
            settle(answer, error=EngineError(request_id, f"the engine's weights are a mixture: {partly[0]}"))
            return
        if token_ids != tuple(output.prompt_token_ids):
            lengths = f"{len(token_ids)} tokens were sent, the engine read {len(output.prompt_token_ids)}"
            settle(answer, error=EngineError(request_id, f"the prompt was changed on its way: {lengths}"))
            return
        self._count(output, time.monotonic() - start)
        settle(answer, output)

    def _count(self, output: RequestOutput, seconds: float) -> None:
        with self._lock:
            self._counters.requests += 1
            self._counters.prompt_tokens += len(output.prompt_token_ids)
            self._counters.cached_prompt_tokens += output.num_cached_tokens or 0
            self._counters.generated_tokens += len(output.outputs[0].token_ids)
            self._counters.seconds += seconds

    def _encoded_items(self) -> int:
        return self._driver.call("count_encoded_items")[0]


def driver_of(on_cpu: bool) -> type[Driver]:
    """InlineDriver on CPU, AsyncDriver on CUDA; the other one and what of vLLM it takes are not imported."""
    if on_cpu:
        from actors.engine.inline_driver import InlineDriver

        return InlineDriver
    from actors.engine.async_driver import AsyncDriver

    return AsyncDriver


def require_device(gpus: float) -> None:
    """Refuse an engine that would not compute where its worker was placed.

    Args:
        gpus: placement.rollout_gpus.
    Raises:
        ConfigError: vLLM here is built for CPUs though GPUs are reserved, or the other way round.
    """
    on_cpu = current_platform.is_cpu()
    if gpus and on_cpu:
        raise ConfigError(
            f"placement.rollout_gpus={gpus:g}, but the vLLM installed on this node computes on CPUs: set up an "
            "environment for GPUs there (`make clean && make setup EXTRA=gpu`), or set placement.rollout_gpus=0"
        )
    if not gpus and not on_cpu:
        raise ConfigError(
            "placement.rollout_gpus is 0, but the vLLM installed on this node computes on GPUs, which then nobody has "
            "reserved: set placement.rollout_gpus=1"
        )


def make_engine(
    policy_dir: str | Path,
    policy: PolicyConfig,
    engine: EngineConfig,
    seed: int,
    *,
    version: int = 0,
    deterministic: bool = False,
    sleeps: bool = False,
) -> VllmEngine:
    """The engine of a rollout worker; what is sent there is this function and its arguments."""
    return VllmEngine(policy_dir, policy, engine, seed, version=version, deterministic=deterministic, sleeps=sleeps)


def _completion(request_id: str, output: RequestOutput) -> Completion:
    sampled = output.outputs[0]
    if sampled.finish_reason not in ("stop", "length"):
        raise EngineError(request_id, f"ended with {sampled.finish_reason!r}")
    versions = {span.version for span in sampled.weight_versions}
    if len(versions) != 1:
        raise EngineError(request_id, f"weights changed while it ran: versions {sorted(versions)}")
    return Completion(
        token_ids=tuple(sampled.token_ids),
        logprobs=tuple(_logprobs_of(sampled.token_ids, sampled.logprobs)),
        finish_reason=sampled.finish_reason,
        policy_version=int(versions.pop()),
        cached_prompt_tokens=output.num_cached_tokens or 0,
    )


def _logprobs_of(token_ids: Sequence[int], flat: FlatLogprobs) -> list[float]:
    """Log-probs of tokens, where vLLM was asked for those of no other one."""
    if flat.token_ids != list(token_ids):
        raise RuntimeError(f"vLLM gave log-probs of {len(flat.token_ids)} tokens for {len(token_ids)} others")
    return flat.logprobs
