"""`dynframe check`: everything that can be known to be wrong before anything starts. Part of the composition root."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from rich.console import Console

from actors.reward import weighted_rewards
from envs.dataset import DatasetError
from envs.formats import UnusableRow
from envs.opening import opening_times
from envs.rollout import Surroundings
from envs.video import VideoError
from rewards.golden import golden_group
from rewards.registry import RewardLoadError
from rewards.scoring import score_group
from rl.config import ConfigError, RunConfig
from rl.findings import Finding, Level
from rl.policy.processor import PolicyFilesError
from rl.prepare import make_surroundings, prepare_policy, prepare_tasks
from rl.trajectory import RewardFailure, VideoTask

ENGINE_GIB = 1.3  # a vLLM process on CPU, before its caches
LEARNER_GIB = 0.7
DRIVER_GIB = 1.0
MIN_FREE_GIB = 1.0  # of disk
BYTES_PER_TRAINED_PARAMETER = 16  # fp32 weights, gradients and two Adam moments


def run_checks(config: RunConfig, console: Console) -> list[Finding]:
    """Every finding, in the order a run would meet them; one failure does not hide the next."""
    return [
        Finding("configuration", Level.OK, f"{config.name}: keys and ranges are valid"),
        *_rewards(config),
        *_data(config, console),
        *_policy(config, console),
        *_resources(config),
        _output(config),
    ]


def preflight(config: RunConfig) -> None:
    """What a run looks at before any work: seconds, and no video decoded.

    Raises:
        ConfigError: a reward does not work, the machine is too small, or the output cannot be written.
    """
    findings = [*_rewards(config), _memory(config, parameters=0), _output(config)]
    missing = [finding for finding in findings if finding.level is Level.MISSING]
    if missing:
        raise ConfigError("; ".join(f"{finding.subject}: {finding.detail}" for finding in missing))


def _rewards(config: RunConfig) -> Iterator[Finding]:
    """Each reward is loaded and run on a golden group."""
    for name, term in config.rewards.items():
        subject = f"rewards.{name}"
        try:
            scored = score_group(golden_group(), weighted_rewards({name: term}), calls=config.scoring.calls)
        except (RewardLoadError, ValueError) as error:
            yield Finding(subject, Level.MISSING, str(error))
            continue
        failures = [verdict for verdict in scored.rewards_G if isinstance(verdict, RewardFailure)]
        if failures:
            yield Finding(subject, Level.MISSING, f"{failures[0].cause} on a golden trajectory: {failures[0].detail}")
        else:
            values = [round(reward.breakdown[name], 3) for reward in scored.rewards_G if name in reward.breakdown]
            yield Finding(subject, Level.OK, f"{term.fn} gives {values} on four golden trajectories")


def _data(config: RunConfig, console: Console) -> Iterator[Finding]:
    for split in ("train", "held_out"):
        subject = f"data.{split}"
        try:
            loaded = prepare_tasks(config, split, console)
        except (DatasetError, UnusableRow, VideoError) as error:
            yield Finding(subject, Level.MISSING, str(error))
            continue
        level = Level.NOTE if loaded.rejected else Level.OK
        yield Finding(
            subject,
            level,
            f"{len(loaded.tasks)} tasks, {len(loaded.rejected)} rows left out, {loaded.clamped} clamped to the clip",
        )


def _policy(config: RunConfig, console: Console) -> Iterator[Finding]:
    """The policy's folder, and whether the longest trajectory fits its context."""
    try:
        policy_dir = prepare_policy(config)
        surroundings = make_surroundings(config, policy_dir)
    except (ConfigError, PolicyFilesError) as error:
        yield Finding("policy", Level.MISSING, str(error))
        yield Finding("token budget", Level.NOTE, "not checked: it needs the policy's tokenizer")
        return
    yield Finding("policy", Level.OK, f"{policy_dir} ({_parameters(policy_dir) / 1e6:.1f} M parameters)")
    yield from _attempt("token budget", lambda: _token_budget(config, surroundings, console))
    yield _memory(config, _parameters(policy_dir))


def _token_budget(config: RunConfig, surroundings: Surroundings, console: Console) -> Finding:
    tasks = prepare_tasks(config, "train", console).tasks
    longest = max(tasks, key=lambda task: len(task.question))
    question = len(surroundings.processor.encode(longest.question)) + 16  # chat markers
    opening, look = _opening_tokens(config, surroundings, longest), _look_tokens(config, surroundings, longest)
    needed = question + opening + config.retrieval.max_calls * look + config.rollout.max_new_tokens
    limit = config.rollout.engine.max_model_len
    detail = (
        f"opening up to {opening}, a look up to {look}, question {question}, sampled {config.rollout.max_new_tokens}: "
        f"{needed} of rollout.engine.max_model_len={limit}"
    )
    if question + opening + config.rollout.max_new_tokens > limit:
        return Finding("token budget", Level.MISSING, f"{detail}; raise it, or lower video.v0.max_frames or max_pixels")
    if needed > limit:
        return Finding("token budget", Level.NOTE, f"{detail}; the widest looks will get fewer frames")
    return Finding("token budget", Level.OK, detail)


def _opening_tokens(config: RunConfig, surroundings: Surroundings, task: VideoTask) -> int:
    clip = surroundings.reader.describe(task.video_path)
    frames = len(opening_times(clip.duration_s, clip.native_fps, surroundings.opening))
    return min(
        config.video.v0.max_visual_tokens, _block_tokens(surroundings, task, frames, config.video.v0.max_pixels)
    ) + _text_tokens(config, surroundings, frames)


def _look_tokens(config: RunConfig, surroundings: Surroundings, task: VideoTask) -> int:
    frames = config.retrieval.max_frames
    visual = _block_tokens(surroundings, task, frames, config.retrieval.max_pixels)
    return visual + _text_tokens(config, surroundings, frames)


def _block_tokens(surroundings: Surroundings, task: VideoTask, frames: int, max_pixels: int) -> int:
    clip, processor = surroundings.reader.describe(task.video_path), surroundings.processor
    height, width = processor.fit(clip.height, clip.width, max_pixels)
    return frames * height * width // (processor.geometry.patch * processor.geometry.merge) ** 2


def _text_tokens(config: RunConfig, surroundings: Surroundings, frames: int) -> int:
    """Scene times written as text, if every frame is a scene, and the block's two markers."""
    time = len(surroundings.processor.encode("<123.4 seconds>")) if config.policy.scenes.timestamps == "text" else 0
    return frames * time + 2


def _memory(config: RunConfig, parameters: int) -> Finding:
    if config.placement.learner_gpus or config.placement.rollout_gpus:
        return Finding("memory", Level.NOTE, "GPU memory is checked by the engines when they start")
    engines = config.rollout.num_workers * (ENGINE_GIB + config.rollout.engine.kv_cache_bytes / 2**30)
    trained = parameters * BYTES_PER_TRAINED_PARAMETER / 2**30
    learners = config.learner.num_ranks * (LEARNER_GIB + trained)
    needed, free = engines + learners + DRIVER_GIB, psutil.virtual_memory().available / 2**30
    detail = f"about {needed:.1f} GiB needed, {free:.1f} GiB free"
    if needed > free:
        remedy = "close programs, or lower rollout.num_workers, learner.num_ranks or rollout.engine.kv_cache_bytes"
        return Finding("memory", Level.MISSING, f"{detail}; {remedy}")
    return Finding("memory", Level.OK, detail)


def _resources(config: RunConfig) -> Iterator[Finding]:
    placement = config.placement
    cpus = (
        config.rollout.num_workers * placement.rollout_cpus
        + config.scoring.num_workers * placement.reward_cpus
        + config.learner.num_ranks * placement.learner_cpus
    )
    gpus = config.rollout.num_workers * placement.rollout_gpus + config.learner.num_ranks * placement.learner_gpus
    needed = f"{cpus:g} CPU and {gpus:g} GPU"
    if os.environ.get("RAY_ADDRESS"):
        yield Finding("resources", Level.OK, f"{needed}, asked of the cluster when the run starts")
    elif gpus and not Path("/dev/nvidiactl").exists():
        yield Finding("resources", Level.NOTE, f"{needed}: this machine has no GPU; submit the run to a cluster")
    else:
        cores = os.cpu_count() or 1
        note = f"; {cores} cores here, workers take turns" if cpus > cores else ""
        yield Finding("resources", Level.OK, needed + note)


def _output(config: RunConfig) -> Finding:
    folder = Path(config.output_dir)
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        return Finding("output_dir", Level.MISSING, f"{existing} cannot be written; set output_dir=...")
    free = psutil.disk_usage(str(existing)).free / 2**30
    if free < MIN_FREE_GIB:
        remedy = f"{MIN_FREE_GIB:g} GiB are needed: make room, or set output_dir to another disk"
        return Finding("output_dir", Level.MISSING, f"{existing} has {free:.1f} GiB free; {remedy}")
    return Finding("output_dir", Level.OK, f"{folder / config.name}, {free:.0f} GiB free")


def _attempt(subject: str, look: Callable[[], Finding]) -> Iterator[Finding]:
    try:
        yield look()
    except (DatasetError, VideoError) as error:
        yield Finding(subject, Level.MISSING, str(error))


def _parameters(policy_dir: Path) -> int:
    """Counted from the headers of the safetensors files: 8 bytes of length, then JSON."""
    count = 0
    for path in policy_dir.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        count += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return count
