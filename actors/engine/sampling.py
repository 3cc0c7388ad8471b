"""How a request is sampled, in vLLM's words."""

from __future__ import annotations

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from rl.trajectory import Sampling

PLAIN_OUTPUT = {  # of a request: no text, nothing before its end, and no object per token
    "detokenize": False,
    "output_kind": RequestOutputKind.FINAL_ONLY,
    "flat_logprobs": True,
    "skip_clone": True,  # its parameters are made for it alone
}


def sampling_params(sampling: Sampling) -> SamplingParams:
    """vLLM's parameters of a request.

    Raises:
        VLLMValidationError: a value is out of range.
    """
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
        max_tokens=sampling.max_new_tokens,
        stop_token_ids=list(sampling.stop_token_ids),
        ignore_eos=True,  # only the request's stop tokens stop it
        logprobs=0,  # of the sampled token only
        **PLAIN_OUTPUT,
    )
