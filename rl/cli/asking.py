"""One question about one video, without a run: an engine in this process. Part of the composition root."""

from __future__ import annotations

import asyncio
import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from rl.checkpoint.checkpoint import CONFIG, MANIFEST, POLICY_FOLDER
from rl.checkpoint.store import CHECKPOINTS
from rl.config.errors import require
from rl.config.file import load_config
from rl.config.run import RunConfig
from rl.memory_plan.gpus import DRIVER
from rl.policy.episode_settings import EpisodeSettings
from rl.policy.families import is_ours, read_config
from rl.policy.policy_folder import scenes_in
from rl.policy.token_ids import TOKEN_TEXT
from rl.run.console.stages import say, spell_seconds, stage
from rl.run.page import write_report
from rl.run.prepare.episode_context import make_episode_context, make_reader
from rl.run.prepare.errors import as_config_error
from rl.run.prepare.policy import downloaded_policy, in_folder, prepare_policy, require_given_policy
from rl.run.resume import checkpoint_of
from rl.tracking.records import records, write_step
from rl.trajectory import (
    AnswerKind,
    Completion,
    GenerateRequest,
    Sampling,
    ScoredGroup,
    SegmentRewards,
    VideoTask,
)

ASKED_STEP = -3  # its seeds never meet those of training, evaluation or inspection
NOT_SCORED = "rewards.none.fn=format"  # a configuration has a reward; nothing is scored here
PAGE_BYTES = 20 * 2**20
MAX_MODEL_LEN, MAX_NEW_TOKENS = 16384, 1024  # where nothing is known of a run


def configured(policy: str, overrides: Sequence[str], *, best: bool, console: Console | None = None) -> RunConfig:
    """The settings under which a policy is asked: those it was trained with, where they are known.

    Args:
        policy: an export, a stock folder, a run, a checkpoint, or a repository on the hub, which is downloaded: what
            its files say of its settings is asked as well.
        console: where a download says how far it is.
    Raises:
        ConfigError: there is no policy, or an override cannot be used.
    """
    folder, downloaded = Path(policy), False
    if (folder / CHECKPOINTS).is_dir() or (folder / MANIFEST).is_file():
        found = checkpoint_of(folder.absolute(), best=best).folder
        files, given = [found / CONFIG], [f"policy.path={found / POLICY_FOLDER}", "policy.revision=''"]
    else:
        require(not best, f"--best is of a run, and {policy} is none")
        files, given = [], [NOT_SCORED, f"policy.path={policy}"]
        named = load_config(files, [*given, *(text for text in overrides if text.startswith("policy."))])
        if downloaded := named.policy.is_on_hub:
            folder = downloaded_policy(named, console)
        given += _as_the_folder_has_it(folder)
    engine = ("cold_start.enabled=false", "rollout.engine.max_num_seqs=1", "rollout.deterministic=false")
    config = load_config(files, [*given, *engine, *overrides])
    if downloaded:
        config = in_folder(config, folder)
    require_given_policy(config)
    return config


def _as_the_folder_has_it(folder: Path) -> Iterator[str]:
    """Overrides that say what a policy's folder does: its episodes, scenes and precision."""
    episode = EpisodeSettings.of(folder)
    sections = {"video.coarse": episode.coarse, "retrieval": episode.retrieval, "prompt": episode.prompt}
    path = folder / "config.json"
    found = read_config(path) if path.is_file() else {}
    length = found.get("text_config", found).get("max_position_embeddings", MAX_MODEL_LEN)
    yield f"rollout.engine.max_model_len={min(length, MAX_MODEL_LEN)}"
    yield f"rollout.max_new_tokens={MAX_NEW_TOKENS}"
    if (dtype := found.get("dtype", found.get("torch_dtype"))) in ("float32", "bfloat16"):
        yield f"policy.dtype={dtype}"
    if is_ours(found):
        sections["policy.scenes"] = scenes_in(found["vision_config"]["flexivideo"])
    for section, values in sections.items():
        yield from (f"{section}.{name}={json.dumps(value)}" for name, value in asdict(values).items())


@as_config_error()
def require_video(config: RunConfig, video: Path) -> None:
    """
    Raises:
        ConfigError: it cannot be decoded. Found before an engine is started for it.
    """
    with make_reader(config.video) as reader:
        reader.describe(str(video))


def device_of(config: RunConfig) -> str:
    """Where the engine computes: "cuda" or "cpu"."""
    return "cuda" if config.placement.rollout_gpus or DRIVER.exists() else "cpu"


def answer(
    config: RunConfig, video: Path, question: str, console: Console, *, temperature: float, seed: int
) -> dict[str, Any]:
    """One trajectory, as rl.tracking.records has it, and the policy's answer."""
    from actors.engine.engine import make_engine  # torch and vLLM
    from envs.rollout import run_group

    with stage(console, "preparing the policy"):
        policy_dir = prepare_policy(config, console)
    context = make_episode_context(config, policy_dir)
    with stage(console, "starting the engine"):
        engine = make_engine(policy_dir, config.policy, config.rollout.engine, seed)
    task = VideoTask("ask", str(video.absolute()), question, "", AnswerKind.OPEN)
    turns = 0

    async def generate(request: GenerateRequest) -> Completion:
        nonlocal turns
        turns += 1
        frames = sum(one.num_frames for one in request.videos)
        say(console, f"turn {turns}: {len(request.prompt_token_ids):,} tokens, {frames} frames …")
        started_s = time.perf_counter()
        completion = await engine.generate(request)
        took = spell_seconds(time.perf_counter() - started_s)
        say(console, f"turn {turns}: {len(completion.token_ids)} tokens written in {took}")
        return completion

    try:
        group = asyncio.run(
            run_group(
                task,
                group_size=1,
                sampling=Sampling(config.rollout.max_new_tokens, temperature),
                generate=generate,
                episode_context=context,
                seed=seed,
                step=ASKED_STEP,
            )
        )
    finally:
        engine.close()
        context.reader.close()
    unscored = ScoredGroup(group, [SegmentRewards(None, math.nan, breakdown={})])
    (record,) = records([unscored], context.processor.pieces)
    return record


def print_answer(record: dict[str, Any], console: Console) -> None:
    """What the policy wrote, the windows it asked for, the frames it saw."""
    coarse = record["coarse_frames"]
    if coarse:
        times_s, scenes = coarse["timestamps_s"], coarse["scene_lengths"]
        console.print(
            f"[bold]saw[/] {len(times_s)} frames in {len(scenes)} scenes, {times_s[0]:g} to {times_s[-1]:g} s"
        )
    for turn in record["turns"]:
        if turn["frames"]:
            shown = ", ".join(f"{time_s:.2f}" for time_s in turn["frames"]["timestamps_s"])
            console.print(
                f"[bold]was shown[/] {len(turn['frames']['timestamps_s'])} frames at {shown} s", highlight=False
            )
        said = "".join(turn["tokens"]).removesuffix(TOKEN_TEXT["im_end"])
        console.print(escape(said), highlight=False, soft_wrap=True)
        if turn["call"]:
            console.print(f"[bold]call[/] {escape(json.dumps(turn['call']))}", highlight=False, soft_wrap=True)
    if record["note"]:
        console.print(f"[bold red]{record['stop']}[/] {escape(record['note'])}", highlight=False, soft_wrap=True)


def write_page(record: dict[str, Any], out: Path, console: Console) -> None:
    """The trajectory as a run's report shows one."""
    with tempfile.TemporaryDirectory(prefix="dynframe-ask-") as scratch:
        folder = Path(scratch) / "ask"
        write_step(folder / "held_out", 0, [record])
        write_report(folder, out, PAGE_BYTES, console)
    say(console, f"page: {out}")
