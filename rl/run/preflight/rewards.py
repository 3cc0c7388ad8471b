"""Every configured reward, loaded and tried on golden trajectories. Part of the composition root."""

from __future__ import annotations

from collections.abc import Mapping

from rewards.registry import OF_TOOL
from rewards.trial import DeclaredReward, try_rewards
from rl.config.errors import ConfigError
from rl.config.run import RunConfig
from rl.run.preflight.findings import Finding, Level


def check_rewards(config: RunConfig) -> list[Finding]:
    """Each reward is loaded and run on a golden group of every kind of answer, elsewhere and within its deadline."""
    declared = {
        name: DeclaredReward(term.fn, term.segment, term.args, term.tool or OF_TOOL.get(term.fn, ""))
        for name, term in config.rewards.items()
    }
    scoring = config.scoring
    trials = try_rewards(declared, calls=scoring.calls, timeout_s=scoring.timeout_s, memory_mib=scoring.memory_mib)
    return [
        Finding(f"rewards.{name}", Level.FAILED, trial.problem)
        if trial.problem
        else Finding(f"rewards.{name}", Level.OK, f"{declared[name].fn} on golden trajectories: {_told(trial.values)}")
        for name, trial in trials.items()
    ]


def require_rewards(config: RunConfig) -> None:
    """
    Raises:
        ConfigError: a reward cannot be loaded, or fails on a golden trajectory; names all of them.
    """
    failed = [finding for finding in check_rewards(config) if finding.level is Level.FAILED]
    if failed:
        raise ConfigError("; ".join(f"{finding.subject}: {finding.detail}" for finding in failed))


def _told(values: Mapping[str, tuple[float, ...]]) -> str:
    """Values, and the kinds of answers that have them."""
    kinds_of: dict[str, list[str]] = {}
    for kind, of_siblings in values.items():
        kinds_of.setdefault(", ".join(f"{value:.3g}" for value in of_siblings), []).append(kind)
    return "; ".join(f"{shown} ({', '.join(kinds)})" for shown, kinds in kinds_of.items())
