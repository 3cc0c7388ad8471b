"""Calls forced where a policy writes none: a second turn to compare before the policy has learned to ask for one.

The first turn's own tokens stay; the call behind them is made. It was not drawn, so it has no behaviour log-probs:
`NOT_DRAWN` stands for them, and `rl.evaluation.parity_cases` has the engine score those tokens like the context.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from envs.prompts import VideoProcessor, encode_reply
from envs.rollout import Generate
from envs.tools.span_fps import render_call
from envs.tools.toolbox import Toolbox
from envs.tools.zoom import NAME as ZOOM
from envs.tools.zoom import WHOLE, render_zoom
from rl.trajectory import SPAN_FPS, Completion, GenerateRequest, TimeSpan

NOT_DRAWN = math.inf  # no log-prob is
OWN_TOKENS = 32  # of a turn: as long as a call, few enough for a large policy on CPU
WINDOW_S, FPS = 4.0, 2.0  # of a made call, at most
STARTS = 8  # siblings look at windows that start at as many different places


def _look(last_s: float, place: int) -> str:
    """A window in the clip's first half or beyond it; the clip's end cuts it off."""
    start_s = round(0.5 * last_s * place / STARTS, 2)
    return render_call(TimeSpan(start_s, start_s + WINDOW_S), FPS)


def _zoom(last_s: float, place: int) -> str:
    """Half the frame, from as far to the left as the moment is early."""
    left = WHOLE / 2 * place / STARTS
    return render_zoom(round(last_s * place / STARTS, 2), (left, left, left + WHOLE / 2, left + WHOLE / 2))


MADE: dict[str, Callable[[float, int], str]] = {SPAN_FPS: _look, ZOOM: _zoom}  # by tool; nobody's else can be made


class CallForcing:
    """An engine whose trajectories look once: at the policy's own call if it writes one, else at a made one."""

    def __init__(self, generate: Generate, processor: VideoProcessor, tools: Toolbox) -> None:
        """
        Args:
            generate: the engine.
            processor: of the policy; it encodes the made calls.
            tools: of the policy; siblings take turns with those that calls can be made of.
        Raises:
            ValueError: there are none.
        """
        self._generate = generate
        self._processor = processor
        self._made = [tool for tool in tools.enabled if tool.name in MADE]
        self._ends = tools.end_ids
        if not self._made:
            raise ValueError(f"calls are made of {' and '.join(MADE)} only, and the policy has neither")

    async def __call__(self, request: GenerateRequest) -> Completion:
        """As the engine, with turns of `OWN_TOKENS` at most, and a call at the end of those before the first look."""
        ids, left = self._processor.ids, request.sampling.max_new_tokens
        looked = len(request.videos) > 1
        call = () if looked else self._call(request)
        own = min(OWN_TOKENS, left if looked else (left - len(call)) // 2)  # as much for the answer
        if own < 1:
            return await self._generate(request)
        drawn = await self._generate(replace(request, sampling=replace(request.sampling, max_new_tokens=own)))
        if looked or drawn.token_ids[-1] in self._ends:
            return drawn
        kept = drawn.token_ids[:-1] if drawn.token_ids[-1] == ids.im_end else drawn.token_ids
        logprobs = (*drawn.logprobs[: len(kept)], *(NOT_DRAWN for _ in call))
        return replace(drawn, token_ids=(*kept, *call), logprobs=logprobs, finish_reason="stop")

    def _call(self, request: GenerateRequest) -> tuple[int, ...]:
        """Another one for each sibling."""
        turn, place = divmod(request.sampling.seed, STARTS)
        tool = self._made[turn % len(self._made)]
        text = MADE[tool.name](request.videos[0].timestamps_s_T[-1], place)
        return encode_reply(text, self._processor, tool.tags)
