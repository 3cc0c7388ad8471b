"""The loop and what surrounds it: checkpoints, evaluation, logs, parity, Ray resources."""

from __future__ import annotations

from dataclasses import dataclass, field

from rl.config.errors import require, require_folder_name, require_one_of, shown

HELD_OUT = "held_out/"  # evaluations during training report under it
HELD_OUT_METRICS = (  # and term/NAME
    *("reward_sampling", "reward_reasoning", "accuracy"),
    *("granted_calls", "malformed_calls", "refused_calls", "frames", "failed"),
)


@dataclass(frozen=True)
class PlacementConfig:
    """Ray resources of each kind of worker."""

    colocate: bool = True  # one placement group packed on few nodes; false: spread
    rollout_cpus: float = 1.0  # per rollout worker
    # per rollout worker; 0: vLLM on CPU; below 1, with learner_gpus below 1: a GPU holds a rank and its engines
    rollout_gpus: float = 0.0
    # where a GPU holds a rank and engines: split (each keeps its part of the memory) | turns (engines sleep while a
    # step is learned from, learners leave what there is no room for while it is rolled out)
    share_gpus: str = "split"
    reward_cpus: float = 0.25  # per reward worker
    learner_cpus: float = 1.0  # per learner rank
    learner_gpus: float = 0.0  # per learner rank; 0: DeepSpeed on CPU
    dashboard: bool = True  # of a Ray started by the run itself, on loopback
    autoscaling: bool = False  # the cluster starts GPU nodes on demand: wait for them where no node has a GPU yet
    # memory that a run is taken to need on this machine, where it uses no GPU and no cluster; 0: estimated
    memory_gib: float = 0.0
    memory_margin: float = 0.25  # of that memory, wanted free beyond it: a note where it is not, never a refusal
    timeout_s: float = 120.0  # to wait for room on the cluster
    check_nodes: bool = (
        True  # that every node a worker may go to has data, policy, packages and code of the driver's node
    )
    # the GPU that memory is planned for: a name such as a100-80gb or h100-80gb; empty: the one that is found
    gpu: str = ""
    gpu_memory_gib: float = 0.0  # of a GPU that has no name here; 0: that of placement.gpu
    gpus_per_node: int = 8  # for planning the main memory of the nodes of a cluster
    # main memory of a node that a run may take; 0: what is free here, where the run would work here
    node_memory_gib: float = 0.0

    def __post_init__(self) -> None:
        require_one_of("placement.share_gpus", self.share_gpus, ("split", "turns"))
        require(
            not self.takes_turns or self.shares_gpus or not self.rollout_gpus + self.learner_gpus,
            f"placement.share_gpus=turns, but engines ({self.rollout_gpus:g}) and ranks ({self.learner_gpus:g}) "
            "have GPUs of their own: set placement.rollout_gpus and placement.learner_gpus below 1, or use split",
        )
        require(self.gpus_per_node >= 1, f"placement.gpus_per_node must be >= 1, got {self.gpus_per_node}")
        for key in ("gpu_memory_gib", "node_memory_gib", "memory_gib"):
            require(getattr(self, key) >= 0, f"placement.{key} must be >= 0, got {getattr(self, key)}")

    @property
    def shares_gpus(self) -> bool:
        """Engines and learner ranks stand on the same GPUs."""
        return 0 < self.rollout_gpus < 1 and 0 < self.learner_gpus < 1

    @property
    def takes_turns(self) -> bool:
        """Engines and learners give memory up for each other."""
        return self.share_gpus == "turns"

    def engines_per_gpu(self, engines: int, ranks: int) -> int:
        """How many engines stand on the fullest GPU."""
        if not 0 < self.rollout_gpus < 1:
            return 1
        return (
            max(engines_beside(engines, ranks)) if self.shares_gpus else min(engines, int(1 / self.rollout_gpus + 1e-6))
        )


def engines_beside(engines: int, ranks: int) -> list[int]:
    """How many engines stand on each rank's GPU, where GPUs are shared: they are dealt out one by one."""
    return [len(range(rank, engines, ranks)) for rank in range(ranks)]


@dataclass(frozen=True)
class EvaluationConfig:
    """`dynframe eval`: what is rolled out greedily and scored; results lie in eval/NAME of the run."""

    # a name of envs/benchmarks/registry.py, module:NAME or path/file.py:NAME; empty: data.held_out, scored by `rewards`
    benchmark: str = ""
    path: str = ""  # the benchmark's annotation file or folder; unused where benchmark is empty, as is video_root
    video_root: str = ""  # folder that every video must lie under; empty: the annotations' folder
    name: str = ""  # NAME in eval/NAME; empty: the benchmark's, or held_out. Other settings need another name
    limit: int = 0  # examples, the first of the file; 0: all. May be raised later: what is done is kept
    # which answers count under the metrics' plain names: strict (in the form the prompt asks for, as rewards read them)
    # | lenient (whatever is unmistakable, as evaluators of stock models do); the table always has both
    reading: str = "strict"
    in_flight: int = 32  # examples at a time per rollout worker: while some decode, the engine works on others

    def __post_init__(self) -> None:
        require(self.limit >= 0, f"evaluation.limit must be >= 0, got {self.limit}")
        require_one_of("evaluation.reading", self.reading, ("strict", "lenient"))
        require(self.in_flight >= 1, f"evaluation.in_flight must be >= 1, got {self.in_flight}")
        require(
            not self.benchmark or bool(self.path),
            f"evaluation.benchmark is {shown(self.benchmark)}: where do its annotations lie? "
            "(evaluation.path=FILE_OR_FOLDER)",
        )
        require_folder_name("evaluation.name", self.name or "held_out")


@dataclass(frozen=True)
class TrainerConfig:
    """The loop, and what it leaves on disk."""

    # steps by which the policy that samples may be behind the one that learns: so many later steps are rolled out while
    # one is learned from; 0: rollouts and learning take turns
    max_policy_lag: int = 0
    steps: int = 100  # optimizer steps in all, those of a resumed checkpoint included
    save_every: int = 20  # steps between two checkpoints; the last step is always saved, 0: only that one
    keep_checkpoints: int = 2  # the newest ones kept on disk
    keep_every: int = 0  # checkpoints of steps that are multiples of it are kept for good; 0: none
    # from the copy of a checkpoint until every rank has written it; beyond it the save has failed
    save_timeout_s: float = 600.0
    # in a row that stop the run, as does a failed last one, or as many steps whose metrics could not be written
    max_failed_saves: int = 3
    remote: str = ""  # fsspec URL of a folder such as s3://bucket/runs: checkpoints are copied to URL/name/checkpoints
    # the end of a run waits so long for the copy; fsspec finds credentials in its own settings
    remote_timeout_s: float = 600.0
    stop_grace_s: float = 120.0  # after SIGTERM or Ctrl-C, to finish a learning step and save; then the process ends
    eval_every: int = 0  # steps between two evaluations; 0: before the first and after the last step only
    eval_tasks: int = 64  # held-out tasks, or conversations, per evaluation; 0 turns evaluation off
    # the best checkpoint by it is kept; "-held_out/…": the lower the better; empty: none is. Evaluations after the
    # first step count; every run has the default, whatever its rewards; a fine-tuning run takes -held_out/nll instead
    best_metric: str = "held_out/reward_reasoning"

    # steps, counted from 1, of which every engine's and every learner rank's work is profiled by torch, for Perfetto or
    # chrome://tracing; files in RUN/profiles/step_N, tens of MB each for minutes of a large policy
    profile_steps: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        require(self.max_policy_lag >= 0, f"trainer.max_policy_lag must be >= 0, got {self.max_policy_lag}")
        require(self.steps >= 0, "trainer.steps must be >= 0")
        require(
            all(step >= 1 for step in self.profile_steps),
            f"trainer.profile_steps counts steps from 1, got {self.profile_steps}",
        )
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
    """Sinks of metrics; metrics.jsonl and summary.json are always written."""

    tensorboard: bool = True  # event files in RUN/tensorboard
    wandb: str = "disabled"  # disabled | offline | online
    wandb_project: str = "dynframe-rl"  # project that W&B runs are filed under
    trajectories_per_step: int = 64  # readable records kept per step; 0: none
    # trajectories that TensorBoard and W&B show as videos, each time: after an evaluation, and after step 1 and every
    # sample_every steps from there; the first sibling of as many tasks; 0: none
    sample_videos: int = 2
    sample_every: int = 50  # 0: after evaluations only

    def __post_init__(self) -> None:
        require_one_of("logging.wandb", self.wandb, ("disabled", "offline", "online"))
        for key in ("sample_videos", "sample_every"):
            require(getattr(self, key) >= 0, f"logging.{key} must be >= 0, got {getattr(self, key)}")


@dataclass(frozen=True)
class ParityConfig:
    """Engine log-probs against learner log-probs, watched every step."""

    warn_nat: float = 1e-3  # largest |difference| of a token's log-prob that causes no warning
    abort_nat: float = 1.0  # mean |difference| that stops the run: engine and learner are different policies
    gate_nat: float = 1e-4  # largest |difference| that `dynframe parity` allows in float32
    gate_bf16_nat: float = 0.5  # and in bfloat16: 8 bits of mantissa, improbable prompt tokens included
    gate_bf16_mean_nat: float = 0.03  # largest mean of a segment there; 1.7e-2 was measured, for prompts
