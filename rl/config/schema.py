"""Every knob of a run, with its unit and its reason: frozen dataclasses that validate themselves.

How they come out of YAML files and `key=value` overrides: rl.config.file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

LONGEST = 1000  # characters of a message
HELD_OUT = "held_out/"  # evaluations during training report under it
HELD_OUT_METRICS = ("reward_sampling", "reward_reasoning", "accuracy", "calls", "frames", "failed")  # and term/NAME


class ConfigError(ValueError):
    """The configuration cannot be used; the message names file, key and remedy."""


def require(condition: bool, message: str) -> None:
    """
    Raises:
        ConfigError: the condition does not hold.
    """
    if not condition:
        raise ConfigError(message if len(message) <= LONGEST else f"{message[:LONGEST]}…")


def shown(text: str) -> str:
    """A text as a message quotes it."""
    return repr(text) if len(text) <= 100 else f"{text[:100]!r}…"


def _one_of(key: str, value: str, choices: Iterable[str]) -> None:
    choices = sorted(choices)
    require(value in choices, f"{key} must be one of {', '.join(choices)}, got {value!r}")


def _require_folder_name(key: str, name: str) -> None:
    require(
        re.fullmatch(r"[\w.-]{1,100}", name) is not None and name not in (".", ".."),
        f"{key} must be letters, digits, '_', '-' or '.', 100 at most, for it names a folder in output_dir; got "
        f"{shown(name)}",
    )


@dataclass(frozen=True)
class TinyPolicyConfig:
    """Size of the policy the project builds itself when `policy.path` is empty: about 1-3 M parameters."""

    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4  # head size 32: the smallest vLLM's attention knows
    num_kv_heads: int = 2
    vision_hidden_size: int = 64
    vision_layers: int = 2
    vision_heads: int = 2
    vocab_size: int = 768  # byte-level BPE trained on the spot; padded to a multiple of 64
    max_position_embeddings: int = 4096

    def __post_init__(self) -> None:
        require(self.hidden_size == 32 * self.num_heads, "policy.tiny.hidden_size must be 32 * policy.tiny.num_heads")
        require(self.num_heads % self.num_kv_heads == 0, "policy.tiny.num_kv_heads must divide policy.tiny.num_heads")


@dataclass(frozen=True)
class ScenesConfig:
    """FlexiVideo's Adaptive Temporal Segmentation and encoding. All of it enters the policy's fingerprint."""

    mode: str = "dynamic"  # dynamic | fixed (2-frame pairs, stock kernel) | fixed6 (6-frame scenes)
    tau: float = 0.2  # largest change inside a scene, ImageNet-normalised units; the paper's value
    norm: str = "l2"  # over channels: l2 (the paper) | rms
    difference_scale: int = 1  # area-downscale by this factor before differencing; 4-8 is proof against sensor noise
    reference: str = "first"  # compare with the scene's first frame (the paper) | previous
    max_scene_frames: int = 64  # longest scene
    budget: str = "pairs"  # pairs: raise tau per block until K <= ceil(T/2) | none: the literal rule
    init_frames: int = 6  # temporal extent of the expanded kernel, T_init
    unit_gain: bool = True  # rescale each resampled kernel so that a still scene keeps the original response
    timestamps: str = "text"  # each scene preceded by its start time as text | none (the paper's layout)

    def __post_init__(self) -> None:
        _one_of("policy.scenes.mode", self.mode, ("dynamic", "fixed", "fixed6"))
        _one_of("policy.scenes.norm", self.norm, ("l2", "rms"))
        _one_of("policy.scenes.reference", self.reference, ("first", "previous"))
        _one_of("policy.scenes.budget", self.budget, ("pairs", "none"))
        _one_of("policy.scenes.timestamps", self.timestamps, ("text", "none"))
        require(self.tau >= 0, f"policy.scenes.tau must be >= 0, got {self.tau}")
        require(self.difference_scale in (1, 2, 4, 8), "policy.scenes.difference_scale must be 1, 2, 4 or 8")
        require(self.max_scene_frames >= 1, "policy.scenes.max_scene_frames must be >= 1")
        require(
            self.init_frames >= 2 and self.init_frames % 2 == 0,
            f"policy.scenes.init_frames must be even and >= 2 (the stock kernel spans 2), got {self.init_frames}",
        )


@dataclass(frozen=True)
class PolicyConfig:
    """Which policy is trained."""

    path: str = ""  # a Hugging Face folder (stock Qwen2.5-VL or an export of ours); empty: build the tiny policy
    tiny: TinyPolicyConfig = field(default_factory=TinyPolicyConfig)
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    dtype: str = "float32"  # float32 | bfloat16; engine and learner alike

    def __post_init__(self) -> None:
        _one_of("policy.dtype", self.dtype, ("float32", "bfloat16"))


@dataclass(frozen=True)
class QuickstartWorldConfig:
    """The synthetic world: real mp4 clips rendered on first use, deterministic by seed."""

    seed: int = 0
    train_clips: int = 192
    held_out_clips: int = 64
    duration_s: float = 8.0
    native_fps: float = 12.0
    size: int = 56  # pixels, square
    question_kinds: list[str] = field(
        default_factory=lambda: ["colour"]
    )  # colour | count | order | warmth (a lucky answer) | mislabelled (a wrong annotation)
    shuffle_options: bool = False  # letters in random order per clip: to look them up takes a larger policy


@dataclass(frozen=True)
class SourceConfig:
    """Rows of one split."""

    format: str = "quickstart"  # quickstart | dm_rl | dm_cot | charades_sta
    path: str = ""  # annotation file; unused by quickstart
    video_root: str = ""  # every video must lie under it; empty: the annotation file's folder


@dataclass(frozen=True)
class DataConfig:
    """Where tasks come from."""

    train: SourceConfig = field(default_factory=SourceConfig)
    held_out: SourceConfig = field(default_factory=SourceConfig)
    quickstart: QuickstartWorldConfig = field(default_factory=QuickstartWorldConfig)
    bad_rows: str = "skip"  # skip (reported and counted) | refuse
    quarantine: str = (
        ""  # verdicts of `dynframe validate-data`, honoured by runs; empty: validated_clips.jsonl in cache_dir
    )

    def __post_init__(self) -> None:
        _one_of("data.bad_rows", self.bad_rows, ("skip", "refuse"))


@dataclass(frozen=True)
class CoarseFramesConfig:
    """V0: the frames the policy sees first, uniform over the whole clip."""

    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 64
    max_pixels: int = 151_200  # per frame, after resizing to a multiple of patch * merge
    max_visual_tokens: int = 8_192  # of the whole block

    def __post_init__(self) -> None:
        require(self.fps > 0, f"video.coarse.fps must be > 0, got {self.fps}")
        require(
            1 <= self.min_frames <= self.max_frames, "video.coarse.min_frames must be in 1..video.coarse.max_frames"
        )


@dataclass(frozen=True)
class VideoConfig:
    """Decoding."""

    backend: str = "pyav"  # pyav | decord (plain single-stream files only; others fall back to a typed error)
    coarse: CoarseFramesConfig = field(default_factory=CoarseFramesConfig)
    decode_timeout_s: float = 60.0  # one request; the decoding process is killed beyond it
    decode_workers: int = 1  # killable decoding processes per rollout worker; 0: decode in the worker, without limits
    # of one decoding process, beyond its share of the store; an 8K clip needs 1 GiB for the pictures others refer to
    decode_memory_mib: int = 2048
    frame_cache_bytes: int = 268_435_456  # shared decoded-frame store per rollout worker

    def __post_init__(self) -> None:
        _one_of("video.backend", self.backend, ("pyav", "decord"))
        require(self.decode_timeout_s > 0, "video.decode_timeout_s must be > 0")
        require(self.decode_workers >= 0, f"video.decode_workers must be >= 0, got {self.decode_workers}")
        require(
            256 <= self.decode_memory_mib <= 1_048_576,
            f"video.decode_memory_mib must be between 256 (a 1080p clip) and 1048576, got {self.decode_memory_mib}",
        )


@dataclass(frozen=True)
class RetrievalConfig:
    """What a request to look again may ask for."""

    max_calls: int = 1  # per trajectory; 1 is the paper, 0 turns retrieval off
    min_window_s: float = 0.1
    max_fps: float = 10.0
    max_frames: int = 32  # per call; beyond it the window stays whole and the spacing widens
    max_pixels: int = 151_200  # per frame

    def __post_init__(self) -> None:
        require(self.max_calls >= 0, "retrieval.max_calls must be >= 0")
        require(self.max_fps > 0, "retrieval.max_fps must be > 0")
        require(self.max_frames >= 1, "retrieval.max_frames must be >= 1")


@dataclass(frozen=True)
class EngineConfig:
    """One vLLM engine."""

    max_model_len: int = 2048  # tokens of a whole trajectory, injected video included
    max_num_seqs: int = 32
    kv_cache_bytes: int = 268_435_456  # CPU; ignored where gpu_memory_utilization applies
    gpu_memory_utilization: float = 0.85
    tensor_parallel_size: int = 1  # above 1 weights cannot be read back: weight_sync.verify_tensors must be 0
    enforce_eager: bool = True
    mm_cache_gib: float = 0.25

    def __post_init__(self) -> None:
        require(self.max_model_len >= 1, f"rollout.engine.max_model_len must be >= 1, got {self.max_model_len}")
        require(
            self.tensor_parallel_size >= 1,
            f"rollout.engine.tensor_parallel_size must be >= 1, got {self.tensor_parallel_size}",
        )


@dataclass(frozen=True)
class PromptConfig:
    """Text around the question. A tiny policy learns the form from traces and needs none."""

    system: str = ""
    instructions: str = ""  # after the question; tags in it are the tokens the policy shall write


@dataclass(frozen=True)
class RolloutConfig:
    """Making trajectories."""

    group_size: int = 8  # G siblings per task
    tasks_per_step: int = 8
    max_new_tokens: int = 128  # sampled tokens per trajectory; injected ones do not count
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    num_workers: int = 1  # engines
    deterministic: bool = False  # on CPU in float32: a trajectory follows from weights, task and seed alone, bit for
    #   bit, log-probs included, in any batch, order and engine, and after a fault. On GPU nothing is promised
    stall_timeout_s: float = 180.0  # a worker that has work and does not get on for so long hangs: killed and replaced
    memory_growth_mib: float = 8192.0  # a worker that has grown by more is replaced between two steps; 0: never
    device_memory_growth_mib: float = 2048.0  # the same of what its engine holds on its GPU
    call_timeout_s: float = 600.0  # deadline of a whole `generate`: all groups of a step or held-out evaluation; in
    #   `dynframe eval`, of the time in which no example is finished
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        require(self.group_size >= 2, f"rollout.group_size must be >= 2 for a group baseline, got {self.group_size}")
        require(self.tasks_per_step >= 1, "rollout.tasks_per_step must be >= 1")
        require(self.max_new_tokens >= 1, f"rollout.max_new_tokens must be >= 1, got {self.max_new_tokens}")
        require(self.num_workers >= 1, f"rollout.num_workers must be >= 1, got {self.num_workers}")
        require(self.call_timeout_s > 0, f"rollout.call_timeout_s must be > 0, got {self.call_timeout_s}")
        require(self.stall_timeout_s > 0, f"rollout.stall_timeout_s must be > 0, got {self.stall_timeout_s}")
        require(self.memory_growth_mib >= 0, f"rollout.memory_growth_mib must be >= 0, got {self.memory_growth_mib}")
        require(
            self.device_memory_growth_mib >= 0,
            f"rollout.device_memory_growth_mib must be >= 0, got {self.device_memory_growth_mib}",
        )
        require(self.temperature > 0, "rollout.temperature must be > 0 in training; evaluation is greedy by itself")
        require(
            self.top_p == 1.0 and self.top_k == 0,
            "rollout.top_p < 1 and rollout.top_k > 0 truncate the support and bias importance ratios: "
            "leave them at 1.0 and 0 in training; evaluation is greedy by itself",
        )


@dataclass(frozen=True)
class RewardTermConfig:
    """One reward: a function, the segment it credits, and how much it counts."""

    fn: str = "???"  # built-in name, "package.module:function" or "path/file.py:function"
    segment: str = "reasoning"  # sampling | reasoning
    weight: float = 1.0  # weights of one segment are normalised to sum to 1
    args: dict[str, Any] = field(default_factory=dict)  # keyword arguments of the function

    def __post_init__(self) -> None:
        _one_of("rewards.*.segment", self.segment, ("sampling", "reasoning"))
        require(self.weight >= 0, "rewards.*.weight must be >= 0")


@dataclass(frozen=True)
class ScoringConfig:
    """Reward workers."""

    num_workers: int = 1
    calls: str = "mean"  # several retrieval calls in one trajectory: mean | last | max of their sampling reward
    timeout_s: float = 30.0  # one reward call; a worker deaf to its alarm is killed after siblings * timeout_s
    max_failed_share: float = 0.25  # of a step's trajectories; above it the run stops with the cause
    memory_mib: int = 4096  # a worker may take so much once its rewards are loaded: a call beyond it fails, a worker
    #   beyond half of it is replaced between two groups; 0: no limit

    def __post_init__(self) -> None:
        _one_of("scoring.calls", self.calls, ("mean", "last", "max"))
        require(self.num_workers >= 1, f"scoring.num_workers must be >= 1, got {self.num_workers}")
        require(self.timeout_s > 0, f"scoring.timeout_s must be > 0, got {self.timeout_s}")
        require(self.memory_mib >= 0, f"scoring.memory_mib must be >= 0, got {self.memory_mib}")
        require(
            0 <= self.max_failed_share <= 1, f"scoring.max_failed_share must be in [0, 1], got {self.max_failed_share}"
        )


@dataclass(frozen=True)
class AdvantageConfig:
    """Credit: from rewards to one number per token."""

    method: str = "sd_grpo"  # sd_grpo | grpo | gdpo
    scale: str = "std"  # std | none
    cross_credit: float = 0.0  # share of the reasoning advantage that sampling tokens also get
    unannotated: str = "reason"  # sampling tokens of tasks without evidence: reason | mask
    sampling_weight: float = 0.5  # grpo and gdpo fold both rewards into one scalar
    reasoning_weight: float = 0.5

    def __post_init__(self) -> None:
        _one_of("algorithm.advantage.method", self.method, ("sd_grpo", "grpo", "gdpo"))
        _one_of("algorithm.advantage.scale", self.scale, ("std", "none"))
        _one_of("algorithm.advantage.unannotated", self.unannotated, ("reason", "mask"))


@dataclass(frozen=True)
class LossConfig:
    """The surrogate objective."""

    ratio: str = "token"  # token (PPO/GRPO) | sequence (GSPO) | cispo
    clip_low: float = 0.2
    clip_high: float = 0.28  # DAPO clip-higher
    normaliser: str = "sequence"  # sequence (the paper) | token | segment | constant (Dr.GRPO)
    constant_tokens: int = 128  # divisor of the constant normaliser, per sequence
    kl_beta: float = 0.0  # k3 against a frozen reference; 0 loads no reference
    old_logprobs: str = "engine"  # engine | recompute
    tis_cap: float = 2.0  # truncated importance weights for engine/learner mismatch; 0 = off
    mask_truncated: bool = True

    def __post_init__(self) -> None:
        _one_of("algorithm.loss.ratio", self.ratio, ("token", "sequence", "cispo"))
        _one_of("algorithm.loss.normaliser", self.normaliser, ("sequence", "token", "segment", "constant"))
        _one_of("algorithm.loss.old_logprobs", self.old_logprobs, ("engine", "recompute"))
        require(0 <= self.clip_low < 1, "algorithm.loss.clip_low must be in [0, 1)")
        require(self.clip_high >= 0, "algorithm.loss.clip_high must be >= 0")
        require(self.kl_beta >= 0, "algorithm.loss.kl_beta must be >= 0")
        require(self.constant_tokens >= 1, f"algorithm.loss.constant_tokens must be >= 1, got {self.constant_tokens}")


@dataclass(frozen=True)
class AlgorithmConfig:
    """From scored groups to a gradient."""

    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    dynamic_sampling: int = 0  # times a group with zero variance in both roles is replaced; 0 = off


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay."""

    lr: float = 1e-5
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    warmup_fraction: float = 0.05  # of the run's optimizer steps
    min_lr_fraction: float = 0.1  # where the cosine ends
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        require(self.lr > 0, f"learner.optimizer.lr must be > 0, got {self.lr}")
        require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"learner.optimizer.betas must be two numbers in [0, 1), got {self.betas}",
        )


@dataclass(frozen=True)
class LearnerConfig:
    """DeepSpeed learner ranks."""

    num_ranks: int = 1
    zero_stage: int = 1
    deepspeed_config: str = ""  # extra DeepSpeed keys from a JSON or YAML file; ours win where they collide
    micro_batch: int = 8  # trajectories per forward pass and rank
    updates_per_step: int = 1  # optimizer steps per batch of rollouts
    freeze_vision: bool = False  # ViT blocks frozen; merger and language model trained
    activation_checkpointing: bool = False
    timeout_s: float = 600.0  # one update; also the collective timeout
    max_rebuilds: int = 3  # times lost learners are built anew from the newest checkpoint without getting any further
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        require(self.num_ranks >= 1, "learner.num_ranks must be >= 1")
        require(self.zero_stage in (0, 1, 2, 3), "learner.zero_stage must be 0, 1, 2 or 3")
        require(self.micro_batch >= 1, "learner.micro_batch must be >= 1")
        require(self.updates_per_step >= 1, f"learner.updates_per_step must be >= 1, got {self.updates_per_step}")
        require(self.max_rebuilds >= 0, f"learner.max_rebuilds must be >= 0, got {self.max_rebuilds}")


@dataclass(frozen=True)
class ColdStartConfig:
    """Supervised stage on retrieval traces, before reinforcement learning."""

    enabled: bool = False
    traces: SourceConfig = field(default_factory=SourceConfig)  # dm_cot: a file; else made from annotated evidence
    steps: int = 400
    batch_size: int = 32
    lr: float = 2e-3
    window_jitter_s: float = 1.0  # made traces: windows are off by up to this much, so that RL has something to learn
    fps_jitter: float = 3.0  # and frame rates by this much
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"cold_start.steps must be >= 1, got {self.steps}; cold_start.enabled=false skips it")
        require(self.batch_size >= 1, f"cold_start.batch_size must be >= 1, got {self.batch_size}")
        require(self.lr > 0, f"cold_start.lr must be > 0, got {self.lr}")


@dataclass(frozen=True)
class WeightSyncConfig:
    """Learners to engines."""

    bucket_bytes: int = 67_108_864
    verify_tensors: int = 4  # parameters read back from every engine after each push, rotating; 0 = off
    timeout_s: float = 300.0


@dataclass(frozen=True)
class PlacementConfig:
    """Ray resources of each kind of worker."""

    colocate: bool = True  # one placement group packed on few nodes; false: spread
    rollout_cpus: float = 1.0
    rollout_gpus: float = 0.0
    reward_cpus: float = 0.25
    learner_cpus: float = 1.0
    learner_gpus: float = 0.0
    dashboard: bool = True  # of a Ray started by the run itself, on loopback
    timeout_s: float = 120.0  # a placement that cannot be met fails after this, with what is missing


@dataclass(frozen=True)
class EvaluationConfig:
    """`dynframe eval`: what is played greedily, and judged by whom. Lands in eval/NAME of the run."""

    benchmark: str = ""  # a name of envs/benchmarks/registry.py or module:NAME; empty: data.held_out and `rewards`
    path: str = ""  # the authors' annotation file or folder; unused where benchmark is empty, as is video_root
    video_root: str = ""  # every video must lie under it; empty: the annotations' folder
    name: str = ""  # NAME; empty: the benchmark's, or held_out. Other settings need another name
    limit: int = 0  # examples, the first of the file; 0: all. May be raised later: what is done stays
    in_flight: int = 32  # examples at a time per rollout worker: while some decode, the engine works on others

    def __post_init__(self) -> None:
        require(self.limit >= 0, f"evaluation.limit must be >= 0, got {self.limit}")
        require(self.in_flight >= 1, f"evaluation.in_flight must be >= 1, got {self.in_flight}")
        require(
            not self.benchmark or bool(self.path),
            f"evaluation.benchmark is {shown(self.benchmark)}: where do its annotations lie? "
            "(evaluation.path=FILE_OR_FOLDER)",
        )
        _require_folder_name("evaluation.name", self.name or "held_out")


@dataclass(frozen=True)
class TrainerConfig:
    """The loop."""

    steps: int = 100
    save_every: int = 20  # steps; the last step is always saved, 0: only that one
    keep_checkpoints: int = 2  # the newest so many
    keep_every: int = 0  # checkpoints of steps that are multiples of it are kept for good; 0: none
    save_timeout_s: float = 600.0  # from the copy of a checkpoint until every rank has written it; beyond it has failed
    max_failed_saves: int = 3  # in a row stop the run, as does a failed last one, or as many steps that left no line
    remote: str = ""  # fsspec URL of a folder such as s3://bucket/runs: checkpoints are copied to URL/name/checkpoints
    remote_timeout_s: float = 600.0  # the end of a run waits so long for the copy; how to log in comes from elsewhere
    stop_grace_s: float = 120.0  # after SIGTERM or Ctrl-C: to finish a learning step and save; then the process ends
    eval_every: int = 0  # steps; 0: before the first and after the last only
    eval_tasks: int = 64  # held-out tasks per evaluation; 0 turns evaluation off
    best_metric: str = "held_out/reward_reasoning"  # the best checkpoint by it is kept; "-held_out/…": the lower the
    #   better; empty: none is. Evaluations after the first step count; every run has this one, whatever its rewards

    def __post_init__(self) -> None:
        require(self.steps >= 0, "trainer.steps must be >= 0")
        require(self.keep_checkpoints >= 1, "trainer.keep_checkpoints must be >= 1")
        require(self.save_every >= 0, f"trainer.save_every must be >= 0, got {self.save_every}")
        require(self.keep_every >= 0, f"trainer.keep_every must be >= 0, got {self.keep_every}")
        require(self.save_timeout_s > 0, f"trainer.save_timeout_s must be > 0, got {self.save_timeout_s}")
        require(self.max_failed_saves >= 1, f"trainer.max_failed_saves must be >= 1, got {self.max_failed_saves}")
        require(self.remote_timeout_s >= 0, f"trainer.remote_timeout_s must be >= 0, got {self.remote_timeout_s}")
        require(
            not self.remote or "://" in self.remote,
            f"trainer.remote must be a URL such as s3://bucket/runs or file:///mnt/runs, got {self.remote!r}",
        )
        require(
            "@" not in self.remote.partition("://")[2].partition("/")[0],
            "trainer.remote: leave user and password out of the URL, for it is saved with every checkpoint; fsspec "
            "finds them in the environment or in its own configuration files",
        )
        require(
            not set("*?[") & set(self.remote),
            f"trainer.remote must not hold any of * ? [ (patterns), got {self.remote}",
        )
        require(self.eval_every >= 0, f"trainer.eval_every must be >= 0, got {self.eval_every}")
        require(self.eval_tasks >= 0, f"trainer.eval_tasks must be >= 0, got {self.eval_tasks}")
        require(self.stop_grace_s > 0, f"trainer.stop_grace_s must be > 0, got {self.stop_grace_s}")
        require(
            not self.best_metric or self.best_metric.removeprefix("-").startswith(HELD_OUT),
            f"trainer.best_metric must be empty or start with {HELD_OUT} or -{HELD_OUT}, got {self.best_metric!r}",
        )


@dataclass(frozen=True)
class LoggingConfig:
    """metrics.jsonl and summary.json are always written."""

    tensorboard: bool = True
    wandb: str = "disabled"  # disabled | offline | online
    wandb_project: str = "dynframe-rl"
    trajectories_per_step: int = 64  # readable records kept per step; 0 = none

    def __post_init__(self) -> None:
        _one_of("logging.wandb", self.wandb, ("disabled", "offline", "online"))


@dataclass(frozen=True)
class ParityConfig:
    """Engine log-probs against learner log-probs, watched every step."""

    warn_nat: float = 1e-3  # largest |difference| that passes silently
    abort_nat: float = 1.0  # mean |difference| that stops the run: engine and learner are different policies
    gate_nat: float = 1e-4  # `dynframe parity` fails above this maximum in fp32
    gate_bf16_nat: float = 0.5  # and above this one in bf16: 8 bits of mantissa, improbable prompt tokens included


@dataclass(frozen=True)
class RunConfig:
    """A whole run."""

    name: str = "run"
    output_dir: str = "runs"  # the run's folder is output_dir/name
    cache_dir: str = ".cache/dynframe"  # rendered clips, built policies, cold-start results, by fingerprint
    seed: int = 0
    resume: str = "auto"  # auto: newest valid checkpoint of this run, if any | never: start afresh | PATH
    resume_changed: bool = False  # go on even from a checkpoint whose settings meant another run: a new experiment
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    data: DataConfig = field(default_factory=DataConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    rewards: dict[str, RewardTermConfig] = field(default_factory=dict)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    cold_start: ColdStartConfig = field(default_factory=ColdStartConfig)
    weight_sync: WeightSyncConfig = field(default_factory=WeightSyncConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    parity: ParityConfig = field(default_factory=ParityConfig)

    def __post_init__(self) -> None:
        require(bool(self.rewards), "rewards: at least one term is needed, e.g. rewards.answer.fn=answer")
        require(
            self.rollout.tasks_per_step % self.learner.num_ranks == 0,
            f"rollout.tasks_per_step ({self.rollout.tasks_per_step}) must be a multiple of learner.num_ranks "
            f"({self.learner.num_ranks}): a group never spans ranks",
        )
        require(
            not (self.policy.dtype == "bfloat16" and self.learner.zero_stage == 0),
            "policy.dtype=bfloat16 with learner.zero_stage=0 is wrong in DeepSpeed 0.19 (a phantom optimizer step at "
            "start): use learner.zero_stage=1",
        )
        _require_folder_name("name", self.name)
        _refuse_what_does_not_fit(self)


def _refuse_what_does_not_fit(config: RunConfig) -> None:
    """Values that are sound by themselves, but not together."""
    engine, placement, traces = config.rollout.engine, config.placement, config.cold_start.traces
    longest = config.policy.tiny.max_position_embeddings
    require(
        bool(config.policy.path) or engine.max_model_len <= longest,
        f"rollout.engine.max_model_len ({engine.max_model_len}) must be <= policy.tiny.max_position_embeddings "
        f"({longest}) where the project builds the policy (policy.path is empty): raise the second or lower the first",
    )
    split = engine.tensor_parallel_size
    require(
        split == 1 or config.weight_sync.verify_tensors == 0,
        f"rollout.engine.tensor_parallel_size={split}: a weight cut over several GPUs cannot be read back; "
        "set weight_sync.verify_tensors=0",
    )
    require(
        split == 1 or placement.rollout_gpus >= split,
        f"rollout.engine.tensor_parallel_size={split} needs placement.rollout_gpus >= {split}, "
        f"got {placement.rollout_gpus:g}",
    )
    stall, decode = config.rollout.stall_timeout_s, config.video.decode_timeout_s
    require(
        stall > decode,
        f"rollout.stall_timeout_s ({stall:g}) must be > video.decode_timeout_s ({decode:g}): a worker that waits for a "
        "slow video does not hang",
    )
    best = config.trainer.best_metric.removeprefix("-").removeprefix(HELD_OUT)
    judged = [*HELD_OUT_METRICS, *(f"term/{name}" for name in config.rewards)]
    require(
        not best or best in judged,
        f"trainer.best_metric: no metric {HELD_OUT}{best}; there are {', '.join(HELD_OUT + name for name in judged)}",
    )
    train = config.data.train.format
    require(
        not (config.cold_start.enabled and traces.format == "quickstart" and train != "quickstart"),
        f"cold_start.traces.format is quickstart, the synthetic world, but data.train.format is {train}: set "
        f"cold_start.traces: {{format: {train}, path: ...}}, or cold_start.enabled=false",
    )


def anchored(config: RunConfig, folder: Path) -> RunConfig:
    """The same run with relative output and cache folders taken from `folder`."""
    return replace(
        config, output_dir=str(folder / config.output_dir), cache_dir=str(folder / config.cache_dir)
    )  # joining an absolute path gives that path
