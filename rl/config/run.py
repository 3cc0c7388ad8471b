"""A whole run: every section, and the checks between sections."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from rl.config.algorithm import AlgorithmConfig
from rl.config.data import DataConfig, PromptConfig, RetrievalConfig, VideoConfig
from rl.config.errors import require, require_folder_name
from rl.config.finetune import HELD_OUT_LOSS, FinetuneConfig
from rl.config.learner import ColdStartConfig, LearnerConfig, WeightSyncConfig
from rl.config.policy import PolicyConfig
from rl.config.renamed import RENAMED_VALUES
from rl.config.rewards import RewardTermConfig, ScoringConfig
from rl.config.rollout import RolloutConfig
from rl.config.trainer import (
    HELD_OUT,
    HELD_OUT_METRICS,
    EvaluationConfig,
    LoggingConfig,
    ParityConfig,
    PlacementConfig,
    TrainerConfig,
)
from rl.user_code.reference import absolute

JOB_COPY = "working_dir_files"  # in the path of a job's working directory: a copy, deleted with the job
JOB_HOME = "dynframe-rl"  # below the home folder: where a job's relative output and cache folders lie


@dataclass(frozen=True)
class RunConfig:
    """The run itself."""

    name: str = "run"  # of the run; its folder is output_dir/name
    output_dir: str = "runs"  # where runs are written
    # rendered clips, built policies, cold-start results, by fingerprint; shared by runs
    cache_dir: str = ".cache/dynframe"
    seed: int = 0  # of weights, sampling and the order of tasks
    # auto: from the newest valid checkpoint of this run, if any | never: start afresh | PATH of a checkpoint
    resume: str = "auto"
    # resume even where settings that make a run what it is have changed: a new experiment from there on
    resume_changed: bool = False
    # RUN | CHECKPOINT | FOLDER: begin with its weights (of a run the newest ones) in place of policy.path, and with
    # nothing else of it: optimizer, data and steps are new; empty: with policy.path
    init_from: str = ""
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
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    weight_sync: WeightSyncConfig = field(default_factory=WeightSyncConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    parity: ParityConfig = field(default_factory=ParityConfig)

    def __post_init__(self) -> None:
        require(
            bool(self.rewards) or bool(self.finetune.sources),
            "rewards: at least one term is needed, e.g. rewards.answer.fn=answer; or, for `dynframe finetune`, "
            "finetune.sources",
        )
        require(
            not self.rewards or self.rollout.tasks_per_step % self.learner.sequence_groups == 0,
            f"rollout.tasks_per_step ({self.rollout.tasks_per_step}) must be a multiple of learner.num_ranks "
            f"({self.learner.num_ranks}){_over_a_sequence(self.learner)}: a group never spans ranks",
        )
        require(
            not (self.policy.dtype == "bfloat16" and self.learner.zero_stage == 0),
            "policy.dtype=bfloat16 with learner.zero_stage=0 is wrong in DeepSpeed 0.19 (a phantom optimizer step at "
            "start): use learner.zero_stage=1",
        )
        require_folder_name("name", self.name)
        _refuse_long_contexts(self)
        if self.rewards:
            _refuse_what_does_not_fit(self)

    @property
    def only_finetunes(self) -> bool:
        """Whether it is one of `dynframe finetune` and of nothing else: there is no reward to learn from."""
        return not self.rewards

    @property
    def longest_sample(self) -> int:
        """Tokens of what is learned from at once."""
        return self.finetune.max_tokens if self.only_finetunes else self.rollout.engine.max_model_len

    @property
    def best_metric(self) -> str:
        """What the best checkpoint is chosen by: trainer.best_metric; of a fine-tuning run the held-out loss, unless
        that is empty."""
        return HELD_OUT_LOSS if self.trainer.best_metric and self.only_finetunes else self.trainer.best_metric


def _over_a_sequence(learner: LearnerConfig) -> str:
    split = learner.sequence_parallel
    return f" / learner.sequence_parallel ({split})" if split > 1 else ""


def require_rewards(config: RunConfig) -> None:
    """
    Raises:
        ConfigError: there is none, as in a configuration of `dynframe finetune`.
    """
    require(
        not config.only_finetunes,
        "rewards: at least one term is needed, e.g. rewards.answer.fn=answer; finetune.sources are learned from by "
        "`dynframe finetune`",
    )


def weight_transport(config: RunConfig) -> str:
    """How weights travel from learners to engines: WeightSyncConfig.transport, auto decided.

    Raises:
        ConfigError: the transport that is set cannot be used as workers are placed.
    """
    placement = config.placement
    return config.weight_sync.transport_for(
        placement.rollout_gpus, placement.learner_gpus, shared=placement.shares_gpus
    )


def _refuse_long_contexts(config: RunConfig) -> None:
    """Longer than the tiny policy's, where that is trained."""
    longest = config.policy.tiny.max_position_embeddings
    asked = {"rollout.engine.max_model_len": config.rollout.engine.max_model_len} if config.rewards else {}
    if config.only_finetunes:
        asked["finetune.max_tokens"] = config.finetune.max_tokens
    for key, tokens in asked.items():
        require(
            bool(config.policy.path) or tokens <= longest,
            f"{key} ({tokens}) must be <= policy.tiny.max_position_embeddings ({longest}) where the project builds the "
            "policy (policy.path is empty): raise the second or lower the first",
        )


def _refuse_what_does_not_fit(config: RunConfig) -> None:
    """Values that are sound by themselves, but not together."""
    engine, placement, traces = config.rollout.engine, config.placement, config.cold_start.traces
    split = engine.tensor_parallel_size
    require(
        split == 1 or placement.rollout_gpus >= split,
        f"rollout.engine.tensor_parallel_size={split} needs placement.rollout_gpus >= {split}, "
        f"got {placement.rollout_gpus:g}",
    )
    beside = placement.engines_per_gpu(config.rollout.num_workers, config.learner.num_ranks)
    taken = beside * engine.gpu_memory_utilization
    require(
        taken <= 1,
        f"rollout.engine.gpu_memory_utilization={engine.gpu_memory_utilization:g}: {beside} engines on one GPU "
        f"(placement.rollout_gpus={placement.rollout_gpus:g}) would take {taken:.0%} of its memory; set it below "
        f"{1 / beside:.2f}, less what learners on the same GPU need",
    )
    weight_transport(config)
    require(
        not (config.policy.lora.freezes_tower and config.learner.activation_checkpointing == "vision"),
        "learner.activation_checkpointing=vision recomputes nothing with policy.lora.targets that leave the tower "
        "frozen: set language, none or auto",
    )
    lora = config.policy.lora
    require(
        not lora.rank or lora.freezes_tower or not config.learner.freeze_vision,
        f"learner.freeze_vision=true, and policy.lora.targets train the tower ({', '.join(lora.of_tower)}): leave them "
        "out, or set learner.freeze_vision=false",
    )
    stall, decode = config.rollout.stall_timeout_s, config.video.decode_stall_timeout_s
    require(
        stall > decode,
        f"rollout.stall_timeout_s ({stall:g}) must be > video.decode_stall_timeout_s ({decode:g}): a worker that waits "
        "for a slow disk does not hang",
    )
    require(
        not placement.takes_turns or config.trainer.max_policy_lag == 0,
        f"placement.share_gpus=turns and trainer.max_policy_lag={config.trainer.max_policy_lag}: who takes turns "
        "does not work at once; set the lag to 0, or share_gpus to split",
    )
    loss, lag = config.algorithm.loss, config.trainer.max_policy_lag
    require(
        lag == 0 or loss.old_logprobs == "engine" or loss.tis_cap > 0,
        f"trainer.max_policy_lag={lag} with algorithm.loss.old_logprobs=recompute and "
        "algorithm.loss.tis_cap=0: nothing would correct for tokens that an older policy sampled; set "
        "algorithm.loss.tis_cap=2, or algorithm.loss.old_logprobs=engine",
    )
    _refuse_unknown_metric(config.trainer.best_metric, config.rewards)
    train = config.data.train.format
    looks, calls = config.cold_start.looks, config.retrieval.max_calls
    require(
        not config.cold_start.enabled or looks <= max(calls, 1),
        f"cold_start.looks={looks} teaches more looks than retrieval.max_calls={calls} grants: set "
        f"retrieval.max_calls={looks}, or fewer looks",
    )
    require(
        not (config.cold_start.enabled and traces.format == "quickstart" and train != "quickstart"),
        f"cold_start.traces.format is quickstart, the synthetic world, but data.train.format is {train}: set "
        f"cold_start.traces: {{format: {train}, path: ...}}, or cold_start.enabled=false",
    )


def _refuse_unknown_metric(best_metric: str, rewards: Iterable[str]) -> None:
    name = best_metric.removeprefix("-")
    known = [f"{HELD_OUT}{metric}" for metric in (*HELD_OUT_METRICS, *(f"term/{reward}" for reward in rewards))]
    renamed = RENAMED_VALUES["trainer.best_metric"].get(best_metric)
    advice = f"since 0.4.0 it is {renamed}" if renamed else f"there are {', '.join(known)}"
    require(not name or name in known, f"trainer.best_metric: no metric {name}; {advice}")


def with_absolute_code(config: RunConfig) -> RunConfig:
    """The same run with the files of users' code by their absolute paths: for processes that work in another folder,
    and for configurations written into one."""
    terms = {name: replace(term, fn=absolute(term.fn)) for name, term in config.rewards.items()}
    train, held_out, traces = (
        replace(source, format=absolute(source.format))
        for source in (config.data.train, config.data.held_out, config.cold_start.traces)
    )
    return replace(
        config,
        rewards=terms,
        retrieval=replace(config.retrieval, tools=[absolute(name) for name in config.retrieval.tools]),
        data=replace(config.data, train=train, held_out=held_out),
        cold_start=replace(config.cold_start, traces=traces),
        evaluation=replace(config.evaluation, benchmark=absolute(config.evaluation.benchmark)),
    )


def works_in_a_copy() -> bool:
    """Whether this process is of a Ray job, in a copy of the folder that was shipped with it; each node has its own."""
    return JOB_COPY in Path.cwd().parts


def anchored(config: RunConfig, folder: Path) -> RunConfig:
    """The same run with relative output and cache folders taken from `folder`."""
    return replace(
        config, output_dir=str(folder / config.output_dir), cache_dir=str(folder / config.cache_dir)
    )  # joining an absolute path gives that path


def without_reference(config: RunConfig) -> RunConfig:
    """The same without the divergence from the initial policy: no learner loads that a second time."""
    return replace(config, algorithm=replace(config.algorithm, loss=replace(config.algorithm.loss, kl_beta=0.0)))
