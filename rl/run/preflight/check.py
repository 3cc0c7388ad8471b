"""`dynframe check`: everything that can be known to be wrong before anything starts. Part of the composition root.

What costs nothing comes first: a wrong policy, a full disk, a broken reward are told before a clip is rendered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console

from rl.config.errors import ConfigError
from rl.config.installation import missing_library
from rl.config.run import RunConfig, require_rewards, weight_transport
from rl.run.preflight.attempts import REFUSALS, attempt
from rl.run.preflight.findings import Finding, Level, failed_details, on_one_line
from rl.run.preflight.finetune import run_finetune_checks
from rl.run.preflight.libraries import check_libraries
from rl.run.preflight.machine import check_output, check_resources, require_gpus
from rl.run.preflight.memory import check_heads, check_plan, plan_memory, planned_parameters
from rl.run.preflight.policy import check_policy
from rl.run.preflight.rewards import check_rewards
from rl.run.preflight.shards import check_shards
from rl.run.preflight.token_budget import check_token_budget
from rl.run.preflight.tools import check_tools
from rl.run.prepare.episode_context import episode_context
from rl.run.prepare.policy import local_folder, prepare_processor
from rl.run.prepare.tasks import prepare_tasks, require_sources
from rl.trajectory import AnswerKind, VideoTask


def run_checks(config: RunConfig, console: Console) -> list[Finding]:
    """Every finding, cheap ones first; one failure does not hide the next."""
    if config.only_finetunes:
        return run_finetune_checks(config, console)
    tasks: list[VideoTask] = []
    policy, parameters = check_policy(config)
    return [
        Finding("configuration", Level.OK, f"{config.name}: keys and ranges are valid"),
        policy,
        check_output(config, parameters or planned_parameters(config)),
        *check_libraries(),
        *check_resources(config),
        *check_shards(config),
        Finding("weight transfer", Level.OK, _transfer(config)),
        *_memory(config),
        *check_rewards(config),
        *check_tools(config),
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
    require_rewards(config)
    require_gpus(config)
    if missing := missing_library():
        raise ConfigError(missing)
    policy, parameters = check_policy(config)
    if policy.level is Level.FAILED:
        raise ConfigError(policy.detail)
    require_sources(config)
    findings = [
        check_output(config, parameters or planned_parameters(config)),
        *check_shards(config),
        *_memory(config),
        *check_rewards(config),
        *check_tools(config),
    ]
    if failed := failed_details(findings):
        raise ConfigError(failed)


def _memory(config: RunConfig) -> list[Finding]:
    """Of every GPU and of the node."""
    try:
        return [*check_heads(config), *check_plan(config, plan_memory(config))]
    except ConfigError as error:
        return [Finding("memory", Level.FAILED, on_one_line(error))]


def _data(config: RunConfig, console: Console, tasks: list[VideoTask]) -> Iterator[Finding]:
    """Each split; what is usable is added to `tasks`."""
    for split in ("train", "held_out"):
        yield from attempt(f"data.{split}", lambda split=split: _split(config, split, console, tasks))
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
        yield Finding("policy", Level.FAILED, on_one_line(error))
        return
    yield from attempt("token budget", lambda: check_token_budget(config, context, tasks))
    context.reader.close()
