"""Two fakes: an engine that plays given tokens, at the `Generate` protocol, so that the whole rollout path runs without
vLLM; and a step sampled at once, for the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rl.trajectory import Completion, GenerateRequest, SampledStep


class ScriptedEngine:
    """Sibling i says `scripts[i][turn]`, cut where a real engine would stop. Keeps every request it was sent."""

    def __init__(self, scripts: Sequence[Sequence[Sequence[int]]], policy_version: int = 3) -> None:
        self._scripts = scripts
        self.policy_version = policy_version
        self.requests: list[GenerateRequest] = []

    async def __call__(self, request: GenerateRequest) -> Completion:
        self.requests.append(request)
        await asyncio.sleep(0)  # let the siblings interleave, as they do in an engine
        sibling, turn = map(int, request.request_id.rsplit("/", 2)[1:])
        return self._play(tuple(self._scripts[sibling][turn]), request)

    def of(self, sibling: int) -> list[GenerateRequest]:
        """The requests of one sibling, in order."""
        return [request for request in self.requests if request.request_id.rsplit("/", 2)[1] == str(sibling)]

    def _play(self, script: tuple[int, ...], request: GenerateRequest) -> Completion:
        limit, stops = request.sampling.max_new_tokens, request.sampling.stop_token_ids
        end = next((i + 1 for i, token in enumerate(script) if token in stops), len(script))
        token_ids = script[: min(end, limit)]
        finish_reason = "stop" if token_ids and token_ids[-1] in stops else "length"
        logprobs = tuple(-0.5 - i / 100 for i in range(len(token_ids)))
        return Completion(token_ids, logprobs, finish_reason, self.policy_version)


def sampled_now(drawing, scored_of):
    """A step sampled at once: `scored_of(tasks, attempt)` stands for engines and rewards."""
    draw = next(drawing)
    while True:
        try:
            draw = drawing.send(scored_of(*draw))
        except StopIteration as stop:
            kept, resampled = stop.value
            return SampledStep(tuple(kept), resampled, rollout_s=2.0, reward_s=1.0)
