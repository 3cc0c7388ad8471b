"""The door to vLLM: token ids in, token ids and their log-probs out, weights replaced between requests.

    caller's event loop --request--> driver --> vLLM          one driver per engine, chosen by device:
                        <--output--                           CPU: InlineDriver, a thread that steps an LLMEngine
                                                              CUDA: AsyncDriver, a thread that runs an AsyncLLM

Log-probs are of the distribution sampled from: logits over temperature, ids the policy may not write removed (by the
model itself, see rl.policy.vllm_model), so they compare with the learner's one to one.

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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vllm import RequestOutput, SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.inputs import TokensPrompt
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind

from actors.async_driver import AsyncDriver
from actors.engine_driver import TIMEOUT_S, Driver, result_within, settle
from actors.inline_driver import InlineDriver
from rl.config.errors import ConfigError
from rl.config.policy import PolicyConfig
from rl.config.rollout import EngineConfig
from rl.policy.batch_invariant import PADDINGS
from rl.policy.kernels import kernel_identity, processor
from rl.policy.processor import Processor
from rl.policy.vllm_plugin import BATCH_INVARIANT, WORKER_EXTENSION
from rl.trajectory import Completion, Frames, GenerateRequest, Sampling

log = logging.getLogger(__name__)

BLOCK_TOKENS = 32  # granularity of the prefix cache on CPU; its attention takes multiples of 32
MIN_BATCHED_TOKENS = 8192  # prompts prefilled in one step together
BUCKET_BYTES = 64 * 2**20  # of weights handed over at a time
TORN = "part"  # how the version begins that weights have which did not arrive whole


class EngineError(RuntimeError):
    """vLLM could not do what a request asked; the message names the request and the cause."""

    def __init__(self, request_id: str, cause: object) -> None:
        super().__init__(f"engine request {request_id!r}: {cause}")
        self.request_id = request_id


@dataclass(slots=True)
class Counters:
    """What an engine did since its counters were last read."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0  # of the prompt tokens, served from the prefix cache
    generated_tokens: int = 0
    encoder_items: int = 0  # videos the vision tower ran on
    seconds: float = 0.0  # summed over requests, from submission to completion


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
        driver: Callable[[dict[str, Any]], Driver] | None = None,
    ) -> None:
        """
        Args:
            policy_dir: an ordinary Hugging Face folder of ours.
            version: of the weights in that folder.
            deterministic: on CPU in float32, what a request draws depends on the request and the weights alone, bit for
                bit, log-probs included; elsewhere less depends on the batch, and nothing is promised.
            driver: None: InlineDriver on CPU, AsyncDriver on CUDA.
        Raises:
            ConfigError: `deterministic` cannot be kept on this machine.
        """
        self._processor = Processor.from_pretrained(policy_dir, policy.scenes)
        on_cpu = current_platform.is_cpu()
        arguments = engine_arguments(policy_dir, policy, engine, seed, on_cpu=on_cpu, deterministic=deterministic)
        self._driver = (driver or (InlineDriver if on_cpu else AsyncDriver))(arguments)
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
            params = _sampling_params(request.sampling)
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
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        output = result_within(TIMEOUT_S, self._submit(request_id, token_ids, videos, params), "score")
        scores = zip(token_ids[1:], output.prompt_logprobs[1:], strict=True)
        return [0.0, *(candidates[token].logprob for token, candidates in scores)]

    def load_weights(self, named: Iterable[tuple[str, torch.Tensor | np.ndarray]], version: int) -> None:
        """Replace parameters between requests, then drop every cache that the old ones filled.

        Waits for the requests running; those submitted meanwhile wait for the new weights. A part of the parameters
        may be given; the others stay as they are.

        Args:
            named: Hugging Face names with values; a uint16 array holds the bits of bfloat16.
            version: of the policy from now on; every later completion carries it.
        Raises:
            EngineError: a name or shape is not the model's, or the weights stopped coming. No request is answered until
                others have been loaded.
        """
        try:
            self._driver.exclusively(partial(_replace_weights, named=named, version=version))
        except Exception as error:
            raise EngineError(f"weights {version}", error) from error
        self.policy_version = version

    def checksums(self, names: Sequence[str]) -> dict[str, str]:
        """sha256 of the bytes of live parameters by Hugging Face name, read back from the model as it runs.

        Raises:
            EngineError: no such parameter.
        """
        try:
            return self._driver.exclusively(lambda driver: driver.call("digest_weights", list(names)))
        except Exception as error:
            raise EngineError("checksums", error) from error

    def stats(self) -> dict[str, float]:
        """What the engine did since the last call of this method, see Counters."""
        encoded = self._encoded_items()
        with self._lock:
            counters, self._counters = self._counters, Counters()
            counters.encoder_items, self._encoded_before = encoded - self._encoded_before, encoded
        return {name: float(getattr(counters, name)) for name in Counters.__slots__}

    def device_memory_mib(self) -> float:
        """What the engine holds on its accelerator (rank 0's); 0: it has none."""
        return self._driver.call("device_memory_mib")

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
        padding, varying = self._driver.exclusively(lambda driver: driver.call("make_batch_invariant", PADDINGS))
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
        torn = [span.version for span in output.outputs[0].weight_versions if span.version.startswith(TORN)]
        if torn:
            settle(answer, error=EngineError(request_id, f"the engine's weights are a mixture: {torn[0]}"))
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
        return self._driver.call("count_encoded_items")


def make_engine(
    policy_dir: str | Path,
    policy: PolicyConfig,
    engine: EngineConfig,
    seed: int,
    *,
    version: int = 0,
    deterministic: bool = False,
) -> VllmEngine:
    """The engine of a rollout worker; what is sent there is this function and its arguments."""
    return VllmEngine(policy_dir, policy, engine, seed, version=version, deterministic=deterministic)


def engine_arguments(
    policy_dir: str | Path,
    policy: PolicyConfig,
    engine: EngineConfig,
    seed: int,
    *,
    on_cpu: bool,
    deterministic: bool = False,
) -> dict[str, Any]:
    """vLLM's settings for a policy; what differs on CPU and why stands in docs/decisions/0003-engine.md, what
    `deterministic` changes in 0013-exact-resume.md."""
    one_at_a_time = deterministic and engine.max_num_seqs == 1  # then exactness leans on nothing that was measured
    common = {
        "model": str(policy_dir),
        "dtype": policy.dtype,
        "seed": seed,
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": max(engine.max_model_len, MIN_BATCHED_TOKENS),
        "enforce_eager": engine.enforce_eager,
        "enable_prefix_caching": not one_at_a_time,
        "mm_processor_cache_gb": engine.mm_cache_gib,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "worker_extension_cls": WORKER_EXTENSION,
        "additional_config": {BATCH_INVARIANT: deterministic},
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if not on_cpu:
        return common | {
            "gpu_memory_utilization": engine.gpu_memory_utilization,
            "tensor_parallel_size": engine.tensor_parallel_size,
        }
    return common | {
        "enforce_eager": True,
        "kv_cache_memory_bytes": engine.kv_cache_bytes,
        "block_size": BLOCK_TOKENS,
        "enable_chunked_prefill": False,
        "skip_mm_profiling": True,
    }


def _replace_weights(driver: Driver, *, named: Iterable[tuple[str, torch.Tensor | np.ndarray]], version: int) -> None:
    driver.set_weight_version(f"{TORN} of version {version}")  # until all are there
    bucket, size = [], 0
    for name, value in named:
        bucket.append(_flat(name, value))
        size += bucket[-1][-1].nbytes
        if size >= BUCKET_BYTES:
            driver.call("put_weights", bucket)
            bucket, size = [], 0
    driver.call("put_weights", bucket)
    driver.reset_caches()
    driver.set_weight_version(str(version))


def _flat(name: str, value: torch.Tensor | np.ndarray) -> tuple[str, str, list[int], memoryview]:
    """Name, dtype, shape and bytes: what reaches a worker in this process or in another one alike."""
    tensor = (
        value.detach() if isinstance(value, torch.Tensor) else torch.from_numpy(np.require(value, requirements="W"))
    )
    dtype = "bfloat16" if tensor.dtype == torch.uint16 else str(tensor.dtype).removeprefix("torch.")
    data = tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data
    return name, dtype, list(tensor.shape), data


def _sampling_params(sampling: Sampling) -> SamplingParams:
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
        max_tokens=sampling.max_new_tokens,
        stop_token_ids=list(sampling.stop_token_ids),
        ignore_eos=True,  # only the request's stop tokens stop it
        logprobs=0,  # of the sampled token only
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _completion(request_id: str, output: RequestOutput) -> Completion:
    sampled = output.outputs[0]
    if sampled.finish_reason not in ("stop", "length"):
        raise EngineError(request_id, f"ended with {sampled.finish_reason!r}")
    versions = {span.version for span in sampled.weight_versions}
    if len(versions) != 1:
        raise EngineError(request_id, f"weights changed while it ran: versions {sorted(versions)}")
    return Completion(
        token_ids=tuple(sampled.token_ids),
        logprobs=tuple(at[token].logprob for token, at in zip(sampled.token_ids, sampled.logprobs, strict=True)),
        finish_reason=sampled.finish_reason,
        policy_version=int(versions.pop()),
        cached_prompt_tokens=output.num_cached_tokens or 0,
    )
