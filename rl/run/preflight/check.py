"""`dynframe check`: everything that can be known to be wrong before anything starts. Part of the composition root.

What costs nothing comes first: a wrong policy, a full disk, a broken reward are told before a clip is rendered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console

from envs.video.reader import VideoError
from rl.config.errors import ConfigError
from rl.config.run import RunConfig, weight_transport
from rl.policy.token_ids import PolicyFilesError
from rl.run.preflight.findings import Finding, Level, passed
from rl.run.preflight.machine import check_output, check_resources, require_gpus
from rl.run.preflight.memory import check_heads, check_plan, plan_memory, planned_parameters
from rl.run.preflight.rewards import check_rewards
from rl.run.preflight.shards import check_shards
from rl.run.preflight.token_budget import check_token_budget
from rl.run.prepare.episode_context import episode_context
from rl.run.prepare.policy import (
    count_parameters,
    local_folder,
    prepare_processor,
    require_given_policy,
    tiny_folder,
)
from rl.run.prepare.tasks import prepare_tasks, require_sources
from rl.trajectory import AnswerKind, VideoTask

REFUSALS = (ValueError, OSError, RuntimeError, KeyError, VideoError)  # what a part raises that cannot do its work


def run_checks(config: RunConfig, console: Console) -> list[Finding]:
    """Every finding, cheap ones first; one failure does not hide the next."""
    tasks: list[VideoTask] = []
    policy, parameters = _policy(config)
    return [
        Finding("configuration", Level.OK, f"{config.name}: keys and ranges are valid"),
        policy,
        check_output(config, parameters or planned_parameters(config)),
        *check_resources(config),
        *check_shards(config),
        Finding("weight transfer", Level.OK, _transfer(config)),
        *_memory(config),
        *check_rewards(config),
        *_data(config, console, tasks),
        *_token_budget(config, tasks, policy),
    ]


def _transfer(config: RunConfig) -> str:
    transport = weight_transport(config)
    meaning = {
        "object_store": "from learners to engines through Ray's object store",
        "ipc": "from learners to the engines beside them through shared memory",
    }.get(transport, "from device to device; through Ray's object store to engines that start late")
    return f"{transport}: weights go {meaning}"


def preflight(config: RunConfig) -> None:
    """What a run looks at before any work: seconds, no torch, and no video rendered or decoded.

    Raises:
        ConfigError: the policy, an annotation file or a reward cannot be used, the machine is too small, or the output
            cannot be written.
    """
    require_gpus(config)
    policy, parameters = _policy(config)
    if policy.level is Level.FAILED:
        raise ConfigError(policy.detail)
    require_sources(config)
    findings = [
        check_output(config, parameters or planned_parameters(config)),
        *check_shards(config),
        *_memory(config),
        *check_rewards(config),
    ]
    if not passed(findings):
        failed = [finding for finding in findings if finding.level is Level.FAILED]
        raise ConfigError("; ".join(f"{finding.subject}: {finding.detail}" for finding in failed))


def _memory(config: RunConfig) -> list[Finding]:
    """Of every GPU and of the node."""
    try:
        return [*check_heads(config), *check_plan(config, plan_memory(config))]
    except ConfigError as error:
        return [Finding("memory", Level.FAILED, _on_one_line(error))]


def _policy(config: RunConfig) -> tuple[Finding, int]:
    """The policy's folder, and its parameters; 0 for a tiny one that is not built yet."""
    try:
        require_given_policy(config)
        folder = local_folder(config) if config.policy.path else tiny_folder(config)
        if folder is None:
            return Finding("policy", Level.NOTE, f"{config.policy.path}, downloaded when a run starts"), 0
        parameters = count_parameters(folder)
    except (ConfigError, PolicyFilesError, OSError) as error:
        return Finding("policy", Level.FAILED, _on_one_line(error)), 0
    if not config.policy.path and not folder.is_dir():
        return Finding("policy", Level.OK, "the tiny policy, built when a run starts"), 0
    return Finding("policy", Level.OK, f"{folder} ({parameters / 1e6:.1f} M parameters)"), parameters


def _data(config: RunConfig, console: Console, tasks: list[VideoTask]) -> Iterator[Finding]:
    """Each split; what is usable is added to `tasks`."""
    for split in ("train", "held_out"):
        yield from _attempt(f"data.{split}", lambda split=split: _split(config, split, console, tasks))
    strangers = {source.format for source in (config.data.train, config.data.held_out)} - {"quickstart"}
    if strangers and not config.video.decode_workers:
        yield Finding(
            "video.decode_workers",
            Level.NOTE,
            f"0: clips of {', '.join(sorted(strangers))} are decoded in the rollout worker, without a deadline or a "
            "limit of memory, so that a broken one can hang or end it; set video.decode_workers=1",
        )


def _split(config: RunConfig, split: str, console: Console, tasks: list[VideoTask]) -> Finding:
    loaded = prepare_tasks(config, split, console)
    tasks += loaded.tasks
    detail = (
        f"{len(loaded.tasks)} tasks: {kinds_of_answers(loaded.tasks)}; {len(loaded.rejected)} rows left out, "
        f"{loaded.clamped} clamped to the clip"
    )
    if loaded.windows_left_out:
        detail += f", windows of evidence left out of {len({row.line for row in loaded.windows_left_out})} rows"
    return Finding(f"data.{split}", Level.NOTE if loaded.rejected or loaded.windows_left_out else Level.OK, detail)


def kinds_of_answers(tasks: Sequence[VideoTask]) -> str:
    """How many answers are of each kind: "12 letters, 3 spans, 0 numbers, 1 open"; scores where there are any."""
    counts = Counter(task.answer_kind for task in tasks)
    return ", ".join(
        f"{counts[kind]} {kind}" + ("s" if kind is not AnswerKind.OPEN and counts[kind] != 1 else "")
        for kind in AnswerKind
        if counts[kind] or kind is not AnswerKind.SCORE
    )


def _token_budget(config: RunConfig, tasks: list[VideoTask], policy: Finding) -> Iterator[Finding]:
    if policy.level is Level.FAILED or (config.policy.path and local_folder(config) is None):
        yield Finding("token budget", Level.NOTE, "not checked: it needs the policy's tokenizer")
        return
    try:
        context = episode_context(config, prepare_processor(config))
    except REFUSALS as error:
        yield Finding("policy", Level.FAILED, _on_one_line(error))
        return
    yield from _attempt("token budget", lambda: check_token_budget(config, context, tasks))
    context.reader.close()


def _attempt(subject: str, look: Callable[[], Finding]) -> Iterator[Finding]:
    try:
        yield look()
    except REFUSALS as error:
        yield Finding(subject, Level.FAILED, _on_one_line(error))


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
