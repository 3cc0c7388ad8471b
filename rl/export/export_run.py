"""`dynframe export`: the policy of a run's checkpoint as a folder that others load, and how it came to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from envs.initial_observation import CoarseFrameRules
from envs.prompts import PromptFormat
from envs.retrieval import RetrievalRules
from rl.checkpoint.checkpoint import POLICY_FOLDER, Checkpoint
from rl.checkpoint.store import CHECKPOINTS
from rl.config.errors import ConfigError
from rl.config.file import stored_settings, with_defaults
from rl.export.card import RunFacts, model_card
from rl.export.folder import write_export
from rl.policy.families import family_of
from rl.report.evaluations import EvaluationRow, read_evaluations
from rl.report.run_files import MetricTable, read_metrics
from rl.run.prepare.errors import as_config_error
from rl.run.resume import checkpoint_of


@as_config_error()
def run_export(run: Path, folder: Path, *, best: bool = False) -> None:
    """Write the policy of a run's newest valid checkpoint, of its best, or of a given one, to `folder`.

    Raises:
        ConfigError: no checkpoint there, its policy cannot be used, or `folder` exists.
    """
    if folder.exists():
        raise ConfigError(f"{folder} exists already; name a folder that does not")
    found = checkpoint_of(run, best=best)
    policy = found.folder / POLICY_FOLDER
    settings = with_defaults(stored_settings(found.config_yaml, f"{found.folder}/config.yaml"))
    metrics, evaluations = _recorded(found)
    facts = RunFacts(family_of(policy), found.state.step, settings, metrics, evaluations)
    write_export(policy, folder, episode_section(settings), model_card(facts))


def episode_section(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of the configuration the exported processor does again: coarse frames, looks, the words of the prompt."""
    sections = {
        "coarse": (CoarseFrameRules, settings["video"]["coarse"]),
        "retrieval": (RetrievalRules, settings["retrieval"]),
        "prompt": (PromptFormat, settings["prompt"]),
    }
    return {
        name: {field.name: found[field.name] for field in fields(rules)} for name, (rules, found) in sections.items()
    }


def _recorded(found: Checkpoint) -> tuple[MetricTable, list[EvaluationRow]]:
    """What the checkpoint's run has measured: its curves, and evaluations of this very policy."""
    if found.folder.parent.name != CHECKPOINTS:
        return MetricTable((), {}), []
    run = found.folder.parents[1]
    rows, _ = read_evaluations(run, lambda report: _step_of(report) == found.state.step)
    return read_metrics(run), rows


def _step_of(report: Mapping[str, Any]) -> object:
    policy = report.get("policy")
    return policy.get("step") if isinstance(policy, Mapping) else None
