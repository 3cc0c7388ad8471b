"""`dynframe export`: the policy of a run's checkpoint as a folder that others load, and how it came to be."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from envs.initial_observation import CoarseFrameRules
from envs.prompts import PromptFormat
from envs.tools.rules import RetrievalRules
from rl.checkpoint.checkpoint import CONFIG, POLICY_FOLDER, Checkpoint
from rl.checkpoint.store import CHECKPOINTS
from rl.config.errors import ConfigError
from rl.config.file import load_config, stored_settings, with_defaults
from rl.config.policy import LoraConfig
from rl.config.run import RunConfig
from rl.export.card import RunFacts, adapter_card, base_name, model_card
from rl.export.folder import draft_of, write_export
from rl.learner.whole_masters import whole_masters
from rl.policy.adapter_files import weights_digest
from rl.policy.families import family_of
from rl.policy.lora import write_adapter
from rl.report.evaluations import EvaluationRow, read_evaluations
from rl.report.run_files import MetricTable, read_metrics
from rl.run.initial_policy import found_initial_policy
from rl.run.prepare.errors import as_config_error
from rl.run.resume import checkpoint_of

log = logging.getLogger(__name__)


@as_config_error()
def run_export(run: Path, folder: Path, *, best: bool = False) -> None:
    """Write the policy of a run's newest valid checkpoint, of its best, or of a given one, to `folder`.

    Raises:
        ConfigError: no checkpoint there, its policy cannot be used, or `folder` exists.
    """
    found, settings = _found(run, folder, best)
    write_export(found.folder / POLICY_FOLDER, folder, episode_section(settings), model_card(_facts(found, settings)))


@as_config_error()
def adapter_export(run: Path, folder: Path, console: Console, *, best: bool = False) -> None:
    """Write what LoRA has trained up to such a checkpoint to `folder`, as peft loads it onto the export of the policy
    that the run began with (`base_export`).

    Raises:
        ConfigError: no checkpoint there, `folder` exists, or all parameters were trained.
    """
    found, settings = _found(run, folder, best)
    lora = LoraConfig(**settings["policy"]["lora"])
    if not lora.rank:
        raise ConfigError(f"{run} has trained all parameters (policy.lora.rank=0): export it without --adapter")
    facts = _facts(found, settings)
    digest = _base_digest(load_config([found.folder / CONFIG]), console)
    with draft_of(folder) as draft:
        write_adapter(draft, lora, whole_masters(found.folder, lambda name: True), base_name(facts), digest)
        (draft / "README.md").write_text(adapter_card(facts), encoding="utf-8")


@as_config_error()
def base_export(run: Path, folder: Path, console: Console) -> None:
    """Write the policy that a run began with to `folder`, as `run_export` would.

    Raises:
        ConfigError: no checkpoint there, `folder` exists, or its cold start is no longer in `cache_dir`.
    """
    found, settings = _found(run, folder, best=False)
    config = load_config([found.folder / CONFIG])
    policy = found_initial_policy(config, console)
    facts = replace(_facts(found, settings), step=0, evaluations=[])
    write_export(policy, folder, episode_section(settings), model_card(facts))


def episode_section(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of the configuration the exported processor does again: coarse frames, looks, the words of the prompt."""
    sections = {
        "coarse": (CoarseFrameRules, settings["video"]["coarse"]),
        "retrieval": (RetrievalRules, settings["retrieval"]),
        "prompt": (PromptFormat, settings["prompt"]),
    }
    section = {
        name: {field.name: found[field.name] for field in fields(rules) if field.name in found}
        for name, (rules, found) in sections.items()
    }
    retrieval = section["retrieval"]
    retrieval["tools"] = [Path(name).name for name in retrieval["tools"]]  # no path of this machine
    return section


def _base_digest(config: RunConfig, console: Console) -> str:
    """Of the policy that the run began with; empty where it is no longer there."""
    try:
        return weights_digest(found_initial_policy(config, console))
    except ConfigError as error:
        log.warning("the adapter cannot say for which weights it is: %s", error)
        return ""


def _found(run: Path, folder: Path, best: bool) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint, and its configuration with every default filled in."""
    if folder.exists():
        raise ConfigError(f"{folder} exists already; name a folder that does not")
    found = checkpoint_of(run, best=best)
    return found, with_defaults(stored_settings(found.config_yaml, f"{found.folder}/config.yaml"))


def _facts(found: Checkpoint, settings: Mapping[str, Any]) -> RunFacts:
    metrics, evaluations = _recorded(found)
    return RunFacts(family_of(found.folder / POLICY_FOLDER), found.state.step, settings, metrics, evaluations)


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
