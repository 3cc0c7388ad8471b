"""What an engine has done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """What an engine did since its counters were last read."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0  # of the prompt tokens, served from the prefix cache
    generated_tokens: int = 0
    encoder_items: int = 0  # videos the vision tower ran on
    seconds: float = 0.0  # summed over requests, from submission to completion
