"""The policy that reinforcement learning starts from: the configured one, or what the supervised stage makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from actors.cluster.placement import Slots
from envs.data.formats import RetrievalTrace
from rl.config.data import SPAN_FPS, ZOOM, RetrievalConfig
from rl.config.errors import ConfigError
from rl.config.file import to_dict
from rl.config.run import RunConfig
from rl.policy.scenes import fingerprint as scenes_fingerprint
from rl.run.cold_start import cold_start, forget_progress
from rl.run.console.stages import say
from rl.run.prepare.built_once import built_once, fingerprint
from rl.run.prepare.policy import prepare_policy
from rl.run.prepare.tasks import prepare_traces
from rl.run.supervised import until_done
from rl.run.workers import cluster

LATER_KEYS = {
    "looks": 1,
    "box_jitter": 80.0,
    "window_shift_s": 0.0,
    "misread": 0.0,
}  # of cold_start that older ones had not, switched off


def initial_policy(config: RunConfig, console: Console) -> Path:
    """The policy a run would start reinforcement learning from."""
    policy_dir = prepare_policy(config, console)
    if not config.cold_start.enabled:
        return policy_dir
    if (home := cold_start_home(config, policy_dir, prepare_traces(config, console))).is_dir():
        return home  # no learners are needed
    with cluster(config, policy_dir, console) as slots:
        return cold_started_policy(config, policy_dir, slots, console)


def found_initial_policy(config: RunConfig, console: Console) -> Path:
    """The same, of a run that has begun: nothing is trained.

    Raises:
        ConfigError: what its cold start has made is no longer there.
    """
    policy_dir = prepare_policy(config, console)
    if not config.cold_start.enabled:
        return policy_dir
    home = cold_start_home(config, policy_dir, prepare_traces(config, console))
    if not home.is_dir():
        raise ConfigError(f"the policy after the cold start is no longer in {home}; dynframe cold-start makes it again")
    return home


def cold_started_policy(config: RunConfig, policy_dir: Path, slots: Slots, console: Console) -> Path:
    """The policy after the supervised stage, from the cache if everything it depends on is the same."""
    traces = prepare_traces(config, console)
    home = cold_start_home(config, policy_dir, traces)
    if home.is_dir():
        say(console, f"cold start: found in {home}")

    def attempt(taken: Callable[[], None]) -> None:
        def build(folder: Path) -> None:
            cold_start(config, policy_dir, traces, slots, console, home=home, folder=folder, taken=taken)

        built_once(home, build)

    until_done("cold start", attempt, config.learner.max_rebuilds)
    forget_progress(home)
    return home


def cold_start_home(config: RunConfig, policy_dir: Path, traces: Sequence[RetrievalTrace]) -> Path:
    """The folder of the policy after the supervised stage; not there before that has run."""
    return Path(config.cache_dir) / f"cold-start-{cold_start_fingerprint(config, policy_dir, traces)}"


def cold_start_fingerprint(config: RunConfig, policy_dir: Path, traces: Sequence[RetrievalTrace]) -> str:
    """Names the outcome of the supervised stage: changes with anything that it depends on."""
    unnamed = {"save_every", *(key for key, off in LATER_KEYS.items() if getattr(config.cold_start, key) == off)}
    made_from = {
        "policy": _policy_identity(policy_dir, Path(config.cache_dir)),
        "scenes": scenes_fingerprint(config.policy.scenes),
        "dtype": config.policy.dtype,
        "traces": fingerprint([[t.task.task_id, t.task.video_path, t.task.question, *t.replies] for t in traces]),
        **{section: to_dict(getattr(config, section)) for section in ("video", "prompt")},
        "retrieval": _retrieval_identity(config.retrieval),
        "cold_start": {key: value for key, value in to_dict(config.cold_start).items() if key not in unnamed},
        "max_model_len": config.rollout.engine.max_model_len,
        "freeze_vision": config.learner.freeze_vision,
        "max_grad_norm": config.learner.optimizer.max_grad_norm,
        **({"lora": to_dict(config.policy.lora)} if config.policy.lora.rank else {}),
    }
    return fingerprint(made_from)


def _retrieval_identity(retrieval: RetrievalConfig) -> dict[str, Any]:
    """What traces are run through the environment with; keys that older cold starts had not only where they matter."""
    named = to_dict(retrieval)
    del named["tool_timeout_s"]
    if not retrieval.min_fps:
        del named["min_fps"]
    if retrieval.tools == [SPAN_FPS]:
        del named["tools"]
    if ZOOM not in retrieval.tools:
        del named["zoom_max_pixels"]
    return named


def _policy_identity(policy_dir: Path, cache_dir: Path) -> Any:
    """Folders in the cache are named after what they were made from; of others, the place and the weights' files."""
    folder = policy_dir.resolve()
    if folder.is_relative_to(cache_dir.resolve()):
        return folder.name
    weights = sorted((file.name, file.stat()) for file in folder.glob("*.safetensors"))
    return [str(folder), [[name, status.st_size, status.st_mtime_ns] for name, status in weights]]
