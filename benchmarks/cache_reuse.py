"""What an engine's caches save: encoder runs, and prompt tokens served from the prefix cache.

`groups` are the trajectories of each repeat; counts are pooled within a repeat. What is counted stands in rollout.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from tables import median_and_range, print_table

from actors.engine.settings import BLOCK_TOKENS
from rl.trajectory import TrajectoryGroup


def print_caches(groups: Sequence[Sequence[TrajectoryGroup]], encoder_runs: Sequence[float]) -> None:
    """Encoder runs and prefix hits, per repeat pooled over groups."""
    least = [sum(map(distinct_videos, part)) for part in groups]
    videos = [sum(map(given_videos, part)) for part in groups]
    reuse = [[reusable_tokens(group) for group in part] for part in groups]
    reusable, served, blocks = ([sum(counts[i] for counts in part) for part in reuse] for i in range(3))
    prompts = sum(counts[3] for counts in itertools.chain.from_iterable(reuse)) / sum(
        counts[4] for counts in itertools.chain.from_iterable(reuse)
    )
    per_group = [len(part) for part in groups]
    print_table(
        ("of `one worker`", "median (min..max)"),
        [
            ("encoder runs per group", _ratio(encoder_runs, per_group, ".2f")),
            ("least possible: 1 + distinct granted windows", _ratio(least, per_group, ".2f")),
            ("without caches: every video of every request", _ratio(videos, per_group, ".2f")),
            ("prompt tokens per request", f"{prompts:.0f}"),
            ("reusable prompt tokens served", _ratio(served, reusable, ".1%")),
            (f"of whole blocks of {BLOCK_TOKENS} tokens", _ratio(served, blocks, ".1%")),
        ],
    )


def distinct_videos(group: TrajectoryGroup) -> int:
    """The coarse frames and every granted window, equal ones once."""
    turns = [turn for trajectory in group.trajectories_G for turn in trajectory.turns]
    return 1 + len({turn.frames.digest for turn in turns if turn.frames is not None})


def given_videos(group: TrajectoryGroup) -> int:
    """Videos in all requests: turn k's holds the coarse frames and those of the turns before."""
    shown = 0
    for trajectory in group.trajectories_G:
        held = 1
        for turn in trajectory.turns:
            held += turn.frames is not None
            shown += held
    return shown


def reusable_tokens(group: TrajectoryGroup) -> tuple[int, int, int, int, int]:
    """Reusable prompt tokens, those served, those that fill whole blocks; prompt tokens and requests."""
    reusable = served = blocks = prompts = requests = 0
    for number, trajectory in enumerate(group.trajectories_G):
        computed = len(trajectory.turns[0].context_token_ids) if number else 0  # by the first sibling
        history = 0
        for turn in trajectory.turns:
            history += len(turn.context_token_ids)
            known = min(computed, history - 1)
            reusable += known
            blocks += (whole := known // BLOCK_TOKENS * BLOCK_TOKENS)
            served += min(turn.completion.cached_prompt_tokens, whole)
            prompts, requests = prompts + history, requests + 1
            history += len(turn.completion.token_ids)
            computed = history - 1
    return reusable, served, blocks, prompts, requests


def _ratio(numerators: Sequence[float], denominators: Sequence[float], form: str) -> str:
    return median_and_range([n / d for n, d in zip(numerators, denominators, strict=True)], form)
