"""Which panels there are, by section: a dashboard each."""

from __future__ import annotations

from rl.monitoring.queries import NodeQuery, Section, panel

# units as Grafana calls them
SHARE, SECONDS, BYTES, MIB, PER_SECOND, NUMBER = "percentunit", "s", "bytes", "mbytes", "cps", "short"

LEARNING = Section(
    "learning",
    "Learning",
    (
        panel("Steps", NUMBER, "step"),
        panel("Reward", NUMBER, ("reward/sampling", "retrieval"), ("reward/reasoning", "answer")),
        panel("Reward by term", NUMBER, "reward/term/"),
        panel(
            "Held out",
            NUMBER,
            ("held_out/reward_sampling", "retrieval"),
            ("held_out/reward_reasoning", "answer"),
            ("held_out/accuracy", "accuracy"),
        ),
        panel("Groups without a spread of rewards", SHARE, "group/"),
        panel("Advantage by segment", NUMBER, "advantage/"),
        panel("Entropy", NUMBER, "policy/entropy"),
        panel("Loss", NUMBER, ("loss/surrogate", "surrogate"), ("loss/kl", "KL to the reference")),
        panel("Gradient norm", NUMBER, "grad/norm"),
        panel("Clipped tokens by segment", SHARE, "policy/clip_fraction/"),
        panel(
            "Ratio and importance weight",
            NUMBER,
            ("policy/ratio_mean", "ratio"),
            ("policy/tis_weight_mean", "importance weight"),
        ),
        panel("Learning rate", NUMBER, "update/lr"),
        panel("Engine against learner, mean by segment", NUMBER, "parity/mean/"),
        panel("Engine against learner, largest by segment", NUMBER, "parity/max/"),
    ),
)
ROLLOUTS = Section(
    "rollouts",
    "Rollouts",
    (
        panel(
            "Trajectories that look again",
            SHARE,
            ("rollout/granted_calls", "training"),
            ("held_out/granted_calls", "held out"),
        ),
        panel(
            "Calls that are not granted as asked",
            SHARE,
            ("rollout/malformed_calls", "malformed"),
            ("rollout/refused_calls", "refused"),
            ("rollout/clamped", "clamped"),
        ),
        panel("Ran out of tokens", SHARE, "rollout/truncated"),
        panel(
            "Frames retrieved per trajectory", NUMBER, ("rollout/frames", "training"), ("held_out/frames", "held out")
        ),
        panel(
            "Tokens per trajectory",
            NUMBER,
            ("rollout/sampled_tokens", "written"),
            ("rollout/visual_tokens", "visual"),
        ),
        panel("Scenes", SHARE, ("scenes/per_frame", "per frame"), ("scenes/per_pair", "per fixed pair")),
        panel("Groups sampled again for a spread of rewards", NUMBER, "rollout/resampled_groups"),
        panel(
            "By how many pushes weights were behind",
            NUMBER,
            ("policy/staleness_mean", "mean"),
            ("policy/staleness_max", "most"),
        ),
        panel("Prompt tokens from the prefix cache", SHARE, "rollout/cached_prompt_share"),
    ),
)
SPEED = Section(
    "speed",
    "Speed",
    (
        panel("Seconds of a step, by stage", SECONDS, "seconds/"),
        panel("Idle", SHARE, ("idle/engines", "engines"), ("idle/learners", "learners")),
        panel("Tokens sampled", PER_SECOND, "rollout/tokens_per_s"),
        panel(
            "Tokens learned",
            PER_SECOND,
            ("update/tokens_per_s", "all ranks"),
            ("update/tokens_per_s_per_rank", "per rank"),
        ),
        panel("Learners' share of the GPUs' peak (MFU)", SHARE, "update/mfu", only_gpus=True),
        panel("Where the rollout workers' time goes", SECONDS, "rollout/seconds/"),
        panel("The last tenth of a step's trajectories", SECONDS, "rollout/tail_s"),
        panel(
            "Work that is shared or wasted",
            SHARE,
            ("update/shared_prefix_share", "shared prefix"),
            ("update/padding_share", "padding"),
        ),
        panel("Learners waited for micro-batches", SECONDS, "update/wait_seconds"),
        panel(
            "Saving held the run up",
            SECONDS,
            ("save/copy_seconds", "copying"),
            ("save/wait_seconds", "waiting for the one before"),
        ),
    ),
)
WEIGHTS = Section(
    "weights",
    "Weights pushed",
    (
        panel("Version", NUMBER, ("policy/version", "learned"), ("sync/version", "confirmed by engines")),
        panel(
            "Seconds of a push",
            SECONDS,
            ("sync/seconds", "in all"),
            ("sync/export_seconds", "out of the learners"),
            ("sync/load_seconds", "into the engines"),
        ),
        panel("Size", BYTES, "sync/bytes"),
        panel("Rate", "GBs", "sync/gb_per_s"),
        panel("Parameters verified by checksums", NUMBER, "sync/verified_parameters"),
        panel("From device to device", NUMBER, "sync/direct"),
    ),
)
FAULTS = Section(
    "faults",
    "Faults",
    (
        panel("Recovered from, since the start, by kind", NUMBER, "faults/"),
        panel("Trajectories masked", NUMBER, ("reward/failed", "no reward"), ("rollout/video_errors", "no video")),
        panel("Updates skipped for a gradient that is not finite", NUMBER, "update/skipped_steps"),
        panel("Held-out tasks without a score", NUMBER, "held_out/failed"),
        panel(
            "Checkpoints that could not be saved, since the start",
            NUMBER,
            ("save/failed", "on the disk"),
            ("save/remote_failed", "copies to trainer.remote"),
        ),
    ),
)
MEMORY = Section(
    "memory",
    "Memory and disk",
    (
        panel(
            "Processes, the largest of each kind",
            MIB,
            ("memory/driver", "driver"),
            ("memory/rollout", "rollout worker"),
            ("memory/learner", "learner rank"),
        ),
        panel("Growth of the worst rollout worker per step", MIB, "memory/rollout_slope"),
        panel("Engine that holds most of its GPU", MIB, "memory/rollout_device", only_gpus=True),
        panel("Memory of the nodes in use", SHARE, NodeQuery("ray_node_mem_used / ray_node_mem_total")),
        panel("Free on the disk of output_dir", BYTES, "disk/free"),
        panel("Free share of that disk", SHARE, "disk/free_share"),
        panel("Free on the disks that the nodes start from", BYTES, NodeQuery("ray_node_disk_free")),
        panel("Object store in use", BYTES, NodeQuery("sum by (instance) (ray_object_store_memory)")),
        panel("Size of a checkpoint", BYTES, "save/bytes"),
        panel("Writing a checkpoint, beside the run", SECONDS, "save/write_seconds"),
    ),
)
SECTIONS = (LEARNING, ROLLOUTS, SPEED, WEIGHTS, FAULTS, MEMORY)
