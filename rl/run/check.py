"""`dynframe check`: everything that can be known to be wrong before anything starts. Part of the composition root."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from actors.reward import weighted_rewards
from envs.initial_observation import coarse_frame_times, fit_visual_tokens, unseen_frames
from envs.prompts import initial_prompt
from envs.rollout import EpisodeContext
from envs.video.reader import VideoError
from rewards.golden import golden_group
from rewards.limits import deadline
from rewards.registry import RewardLoadError
from rewards.scoring import WeightedReward, score_group
from rl.config.errors import ConfigError
from rl.config.rewards import RewardTermConfig
from rl.config.run import RunConfig
from rl.policy.token_ids import PolicyFilesError
from rl.run.findings import Finding, Level, passed
from rl.run.prepare import make_episode_context, prepare_policy, prepare_tasks
from rl.trajectory import AnswerKind, RewardFailure, VideoTask

REFUSALS = (ValueError, OSError, RuntimeError, KeyError, VideoError)  # what a part raises that cannot do its work
MAX_VIDEOS = 200  # whose token counts are looked at
CGROUP = Path("/sys/fs/cgroup")  # version 2: a container's own limits
ENGINE_GIB = 1.3  # a vLLM process on CPU, before its caches
LEARNER_GIB = 0.7
DRIVER_GIB = 1.0
MIN_FREE_GIB = 1.0  # of disk, beside checkpoints
BYTES_PER_TRAINED_PARAMETER = 16  # fp32 weights, gradients and two Adam moments; on disk, both copies of the weights


def run_checks(config: RunConfig, console: Console) -> list[Finding]:
    """Every finding, in the order a run would meet them; one failure does not hide the next."""
    tasks: list[VideoTask] = []
    return [
        Finding("configuration", Level.OK, f"{config.name}: keys and ranges are valid"),
        *_rewards(config),
        *_data(config, console, tasks),
        *_resources(config),
        *_policy(config, tasks),
    ]


def preflight(config: RunConfig) -> None:
    """What a run looks at before any work: seconds, and no video decoded.

    Raises:
        ConfigError: a reward does not work, the machine is too small, or the output cannot be written.
    """
    try:
        parameters = count_parameters(Path(config.policy.path)) if config.policy.path else 0
    except PolicyFilesError as error:
        raise ConfigError(str(error)) from error
    findings = [*_rewards(config), _memory(config, parameters), _output(config, parameters)]
    if not passed(findings):
        failed = [finding for finding in findings if finding.level is Level.FAILED]
        raise ConfigError("; ".join(f"{finding.subject}: {finding.detail}" for finding in failed))


def _rewards(config: RunConfig) -> Iterator[Finding]:
    """Each reward is loaded and run on a golden group of every kind of answer, each call within its deadline."""
    for name, term in config.rewards.items():
        guard = _impatient(deadline(config.scoring.timeout_s), config.scoring.timeout_s)
        try:
            with guard():  # a module that hangs while it is imported, too
                reward = weighted_rewards({name: term})
        except (RewardLoadError, TimeoutError) as error:
            yield Finding(f"rewards.{name}", Level.FAILED, str(error))
            continue
        yield _reward(name, term, reward, config.scoring.calls, guard)


def _reward(
    name: str,
    term: RewardTermConfig,
    reward: list[WeightedReward],
    calls: str,
    guard: Callable[[], AbstractContextManager[Any]],
) -> Finding:
    """It works if it gives numbers for some kind of answer and fails for none; None says that a kind is not its own."""
    given: dict[str, list[float]] = {}
    for kind in AnswerKind:
        scored = score_group(golden_group(kind), reward, calls=calls, guard=guard)
        failures = [v for v in scored.rewards_G if isinstance(v, RewardFailure) and v.term == name]
        if failures:
            where = f"on a golden trajectory ({kind.value} answers)"
            return Finding(f"rewards.{name}", Level.FAILED, f"{failures[0].cause} {where}: {failures[0].detail}")
        said = [reward.breakdown for reward in scored.rewards_G if not isinstance(reward, RewardFailure)]
        values = [round(breakdown[name], 3) for breakdown in said if name in breakdown]
        if values:
            given[kind.value] = values
    if not given:
        return Finding(f"rewards.{name}", Level.FAILED, f"{term.fn} returns None on every golden trajectory")
    values = ", ".join(f"{values} ({kind})" for kind, values in given.items())
    return Finding(f"rewards.{name}", Level.OK, f"{term.fn} gives {values} on four golden trajectories each")


def _impatient(
    guard: Callable[[], AbstractContextManager[Any]], timeout_s: float
) -> Callable[[], AbstractContextManager[Any]]:
    """The guard, but after one deadline was missed further calls are not waited for."""
    hung = False

    @contextmanager
    def once() -> Iterator[None]:
        nonlocal hung
        if hung:
            raise TimeoutError(f"not called again after a call without a result within {timeout_s:g} s")
        try:
            with guard():
                yield
        except TimeoutError:
            hung = True
            raise

    return once


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
    detail = f"{len(loaded.tasks)} tasks, {len(loaded.rejected)} rows left out, {loaded.clamped} clamped to the clip"
    return Finding(f"data.{split}", Level.NOTE if loaded.rejected else Level.OK, detail)


def _policy(config: RunConfig, tasks: Sequence[VideoTask]) -> Iterator[Finding]:
    """The policy's folder, whether the longest trajectory fits its context, and whether the machine holds it."""
    parameters = 0
    try:
        policy_dir = prepare_policy(config)
        episode_context = make_episode_context(config, policy_dir)
        parameters = count_parameters(policy_dir)
    except REFUSALS as error:
        yield Finding("policy", Level.FAILED, _said(error))
        yield Finding("token budget", Level.NOTE, "not checked: it needs the policy's tokenizer")
    else:
        yield Finding("policy", Level.OK, f"{policy_dir} ({parameters / 1e6:.1f} M parameters)")
        yield from _attempt("token budget", lambda: _token_budget(config, episode_context, tasks))
        episode_context.reader.close()
    yield _memory(config, parameters)
    yield _output(config, parameters)


def _token_budget(config: RunConfig, episode_context: EpisodeContext, tasks: Sequence[VideoTask]) -> Finding:
    """The longest trajectory there can be, if every frame is a scene of its own."""
    if not tasks:
        return Finding("token budget", Level.NOTE, "not checked: it needs tasks")
    question = max((task.question for task in tasks), key=len)
    videos = sorted({task.video_path for task in tasks})
    seen = videos[:: math.ceil(len(videos) / MAX_VIDEOS)]
    opening = max(_initial_tokens(episode_context, path, question) for path in seen)
    look = max(_look_tokens(episode_context, path) for path in seen)
    sampled, limit = config.rollout.max_new_tokens, config.rollout.engine.max_model_len
    needed = opening + config.retrieval.max_calls * look + sampled
    detail = (
        f"opening prompt up to {opening}, a look up to {look}, sampled {sampled}: {needed} of "
        f"rollout.engine.max_model_len={limit} ({len(seen)} of {len(videos)} videos looked at)"
    )
    if opening + sampled > limit:
        return Finding(
            "token budget", Level.FAILED, f"{detail}; raise it, or lower video.coarse.max_frames or max_pixels"
        )
    if needed > limit:
        return Finding("token budget", Level.NOTE, f"{detail}; the widest looks will get fewer frames")
    return Finding("token budget", Level.OK, detail)


def _initial_tokens(episode_context: EpisodeContext, video_path: str, question: str) -> int:
    clip, processor, rules = (
        episode_context.reader.describe(video_path),
        episode_context.processor,
        episode_context.coarse,
    )
    times_s_T = coarse_frame_times(clip.duration_s, clip.native_fps, rules)
    frames = unseen_frames(*fit_visual_tokens(times_s_T, clip, processor, rules))
    return len(initial_prompt(question, frames, processor, episode_context.form))


def _look_tokens(episode_context: EpisodeContext, video_path: str) -> int:
    clip, processor, rules = (
        episode_context.reader.describe(video_path),
        episode_context.processor,
        episode_context.retrieval,
    )
    size = processor.fit(clip.height, clip.width, rules.max_pixels)
    return len(processor.video_block(unseen_frames((clip.duration_s,) * rules.max_frames, size)))  # the longest times


def _memory(config: RunConfig, parameters: int) -> Finding:
    if config.placement.learner_gpus or config.placement.rollout_gpus:
        return Finding("memory", Level.NOTE, "GPU memory is checked by the engines when they start")
    if _joins_a_cluster():
        return Finding("memory", Level.NOTE, "not checked: the run's workers are on the cluster of RAY_ADDRESS")
    engines = config.rollout.num_workers * (ENGINE_GIB + config.rollout.engine.kv_cache_bytes / 2**30)
    trained = parameters * BYTES_PER_TRAINED_PARAMETER / 2**30
    learners = config.learner.num_ranks * (LEARNER_GIB + trained)
    copied = trained  # a checkpoint in memory, until it is written beside the run
    needed, free = engines + learners + copied + DRIVER_GIB, available_bytes() / 2**30
    detail = f"about {needed:.1f} GiB needed, {free:.1f} GiB free"
    if needed > free:
        remedy = "close programs, or lower rollout.num_workers, learner.num_ranks or rollout.engine.kv_cache_bytes"
        return Finding("memory", Level.FAILED, f"{detail}; {remedy}")
    return Finding("memory", Level.OK, detail)


def available_bytes() -> int:
    """Memory that can still be taken: the machine's, or what a container's limit leaves of it."""
    free = psutil.virtual_memory().available
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        counters = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except OSError:  # no container, or one that tells no limit
        return free
    reclaimable = int(counters.get("inactive_file", 0))  # file pages, given back under pressure
    return free if limit == "max" else min(free, max(0, int(limit) - used + reclaimable))


def _joins_a_cluster() -> bool:
    return os.environ.get("RAY_ADDRESS", "local") not in ("", "local")


def _resources(config: RunConfig) -> Iterator[Finding]:
    placement = config.placement
    cpus = (
        config.rollout.num_workers * placement.rollout_cpus
        + config.scoring.num_workers * placement.reward_cpus
        + config.learner.num_ranks * placement.learner_cpus
    )
    gpus = config.rollout.num_workers * placement.rollout_gpus + config.learner.num_ranks * placement.learner_gpus
    needed = f"{cpus:g} CPU and {gpus:g} GPU"
    if _joins_a_cluster():
        yield Finding("resources", Level.OK, f"{needed}, asked of the cluster when the run starts")
    elif gpus and not Path("/dev/nvidiactl").exists():
        yield Finding("resources", Level.NOTE, f"{needed}: this machine has no GPU; submit the run to a cluster")
    else:
        cores = os.cpu_count() or 1
        note = f"; {cores} cores here, workers take turns" if cpus > cores else ""
        yield Finding("resources", Level.OK, needed + note)


def _output(config: RunConfig, parameters: int) -> Finding:
    folder = Path(config.output_dir)
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        return Finding("output_dir", Level.FAILED, f"{existing} cannot be written; set output_dir=...")
    kept = config.trainer.keep_checkpoints + 1  # the next one is written before the oldest goes
    kept += bool(config.trainer.best_metric and config.trainer.eval_tasks)  # the best one stays
    if config.trainer.keep_every:
        kept += config.trainer.steps // config.trainer.keep_every
    needed = MIN_FREE_GIB + kept * parameters * BYTES_PER_TRAINED_PARAMETER / 2**30
    free = psutil.disk_usage(str(existing)).free / 2**30
    if free < needed:
        remedy = "make room, keep fewer (trainer.keep_checkpoints, keep_every), or set output_dir to another disk"
        detail = f"{existing} has {free:.1f} GiB free; {needed:.1f} GiB are needed: {remedy}"
        return Finding("output_dir", Level.FAILED, detail)
    return Finding("output_dir", Level.OK, f"{folder / config.name}, {needed:.1f} of {free:.0f} GiB free are needed")


def _attempt(subject: str, look: Callable[[], Finding]) -> Iterator[Finding]:
    try:
        yield look()
    except REFUSALS as error:
        yield Finding(subject, Level.FAILED, _said(error))


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def count_parameters(folder: Path) -> int:
    """Counted from the headers of the safetensors files: 8 bytes of length, then JSON. 0 where there are none.

    Raises:
        PolicyFilesError: a file is not of that form, as a Git LFS pointer is not.
    """
    return sum(_parameters_of(path) for path in folder.glob("*.safetensors"))


def _parameters_of(path: Path) -> int:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise PolicyFilesError(f"{path}: not a safetensors file; was it downloaded in full?")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise PolicyFilesError(f"{path}: not a safetensors file ({error})") from error
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
