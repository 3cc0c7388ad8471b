"""The engine's promises, kept by a real vLLM on a tiny policy. Clips are noise: every pixel matters."""

import asyncio
import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.initial_observation import CoarseFrameRules
from envs.rollout import EpisodeContext
from envs.synthetic.clip import write_mp4
from envs.tools.rules import RetrievalRules
from envs.tools.toolbox import builtin_toolbox, further_tags
from envs.tools.zoom import Zoom
from rl.config.errors import ConfigError
from rl.config.policy import PolicyConfig, ScenesConfig, TinyPolicyConfig
from rl.config.rollout import EngineConfig
from rl.evaluation.forced_calls import NOT_DRAWN, CallForcing
from rl.evaluation.parity import CONTROL_FACTOR_BF16, ParityGates
from rl.policy.families import FAMILIES
from rl.policy.processor import Processor
from rl.trajectory import (
    Frames,
    GenerateRequest,
    Sampling,
    Segment,
    StopReason,
    Trajectory,
    TrajectoryGroup,
    Turn,
    VideoTask,
)
from rl.weight_transfer.checksum import checksum, in_words
from tests.envs.setting import make_reader, make_task

pytestmark = pytest.mark.vllm

ROOT = Path(__file__).parents[3]
SCENES = ScenesConfig(budget="none")
SMALL = TinyPolicyConfig(hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1)
ENGINE = EngineConfig(kv_cache_bytes=64 * 2**20)
FLOAT32 = ParityGates(1e-4, 1e-4)
BFLOAT16 = ParityGates(0.1, 0.02, CONTROL_FACTOR_BF16)
LOUDER = 8.0  # a power of two: exact, and back again
QUESTION = "Look at the video, decide which time window to look at again and at which frame rate, then answer."


ZOOM_TAGS = further_tags([Zoom(RetrievalRules())])
TIED = " with a tied head"
FOR_EACH_FAMILY = pytest.mark.parametrize("build_policy", list(FAMILIES), indirect=True)
FOR_EACH_HEAD = pytest.mark.parametrize(
    "build_policy", [f + head for f in FAMILIES for head in ("", TIED)], indirect=True
)


@pytest.fixture(scope="module")
def build_policy(request, tmp_path_factory):
    """A tiny policy of Qwen2.5-VL, or of the family and head a test asks for; another one for each seed."""
    from rl.policy.tiny import build_tiny_policy

    family, tied, _ = getattr(request, "param", "qwen2_5_vl").partition(TIED)

    def build(seed):
        levels = 3 if family == "qwen3_vl" else 2  # two of DeepStack's
        sizes = replace(SMALL, family=family, vision_layers=levels)
        folder = tmp_path_factory.mktemp("policy")
        return build_tiny_policy(sizes, SCENES, folder, seed, tied=bool(tied), tool_tags=ZOOM_TAGS)

    return build


@pytest.fixture(scope="module")
def policy_dir(build_policy):
    return build_policy(0)


@pytest.fixture(scope="module")
def open_engine():
    """The engine for these settings. A process holds one at a time, so one for others is closed first."""
    held = []

    def open_engine(folder, policy, config=ENGINE, **options):
        from actors.engine.engine import make_engine

        asked = (folder, policy, config, options)
        if not held or held[0][0] != asked:
            close()
            held.append((asked, make_engine(folder, policy, config, seed=0, **options)))
        return held[0][1]

    def close():
        while held:
            held.pop()[1].close()

    yield open_engine
    close()


@pytest.fixture
def engine(open_engine, policy_dir):
    return open_engine(policy_dir, PolicyConfig(scenes=SCENES))


@pytest.fixture
def loud(engine, policy_dir):
    """The learner's policy with a head ten times as loud as a tiny one's, and the engine with the same one: log-probs
    that are nearly uniform would prove little."""
    model = make_loud(policy_dir, engine)
    yield model
    quiet = model.lm_head.weight.detach() / LOUDER
    engine.load_weights([("lm_head.weight", quiet)], engine.policy_version + 1)


def make_loud(folder, engine, dtype="float32"):
    from rl.policy.model import load_policy

    model = load_policy(folder, SCENES, dtype)
    model.lm_head.weight.data *= LOUDER
    engine.load_weights([("lm_head.weight", model.lm_head.weight.detach())], engine.policy_version + 1)
    return model


@pytest.fixture(scope="module")
def processor(policy_dir):
    return Processor.from_pretrained(policy_dir, SCENES)


def clip(processor, *, seed, frames=8, height=56, width=84, start_s=0.0, fps=2.0) -> Frames:
    """Noise in runs of one to three equal frames, so that scenes differ in length; a token is 28 pixels of the size."""
    random, unit = np.random.default_rng(seed), processor.geometry.unit
    height, width = height * unit // 28, width * unit // 28
    pixels = random.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    pixels = pixels[np.minimum(np.arange(frames), np.cumsum(random.integers(0, 2, frames)))]
    return processor.make_frames(pixels, [start_s + i / fps for i in range(frames)])


def opening(processor, frames: Frames) -> tuple[int, ...]:
    return (
        *processor.encode("<|im_start|>user\n"),
        *processor.video_block(frames),
        *processor.encode(f"{QUESTION}<|im_end|>\n<|im_start|>assistant\n<think>"),
    )


def request(token_ids, videos, *, seed=0, tokens=12, temperature=1.0, stop=(), name="r") -> GenerateRequest:
    return GenerateRequest(name, tuple(token_ids), tuple(videos), Sampling(tokens, temperature, 1.0, 0, stop, seed))


def run(engine, requests):
    async def together():
        return await asyncio.gather(*(engine.generate(one) for one in requests))

    return asyncio.run(together())


def play_group(engine, processor, *, siblings=8, seed=0, temperature=1.0, frames=12, size=(84, 112)) -> TrajectoryGroup:
    """Two turns each; at the second one every sibling is shown a clip of its own."""
    first = clip(processor, seed=seed, frames=frames, height=size[0], width=size[1])
    prompt = opening(processor, first)

    async def episode(sibling: int) -> Trajectory:
        called = await engine.generate(request(prompt, [first], seed=sibling, temperature=temperature))
        window = clip(processor, seed=1000 * seed + sibling + 1, frames=3 + sibling % 4, start_s=1.0 + sibling, fps=6.0)
        shown = tuple(processor.video_block(window))
        ids = (*prompt, *called.token_ids, *shown)
        answered = await engine.generate(request(ids, [first, window], seed=sibling, temperature=temperature))
        turns = (Turn(prompt, called, Segment.SAMPLING), Turn(shown, answered, Segment.REASONING, frames=window))
        return Trajectory(turns, StopReason.ANSWERED)

    async def together():
        return await asyncio.gather(*(episode(sibling) for sibling in range(siblings)))

    task = VideoTask("t", "/clip.mp4", QUESTION, "A", "letter")
    return TrajectoryGroup(task, tuple(asyncio.run(together())), first)


def logprobs(engine, token_ids, videos) -> np.ndarray:
    """Of six greedy tokens after a prompt."""
    return np.array(run(engine, [request(token_ids, videos, tokens=6, temperature=0.0)])[0].logprobs)


@FOR_EACH_FAMILY
def test_group_runs_the_encoder_once_per_video_and_prefills_what_is_new(engine, processor):
    engine.stats()

    group = play_group(engine, processor, siblings=8, seed=7, frames=24, size=(112, 140))

    stats = engine.stats()
    first_turns = [trajectory.turns[0] for trajectory in group.trajectories_G]
    prompt = len(first_turns[0].context_token_ids)
    reusable = 7 * prompt + sum(prompt + len(turn.completion.token_ids) for turn in first_turns)
    assert stats["encoder_items"] == 1 + 8
    assert stats["cached_prompt_tokens"] >= 0.9 * reusable
    assert stats["requests"] == 16
    assert engine.stats()["requests"] == 0  # counted since the last reading


@FOR_EACH_FAMILY
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_engine_and_learner_agree_in_every_segment(engine, processor, loud, temperature, record_property):
    from rl.evaluation.parity import measure_parity

    sizes = ((84, 112), (56, 56), (56, 140))
    groups = [
        play_group(engine, processor, siblings=4, seed=i, temperature=temperature, size=size)
        for i, size in enumerate(sizes)
    ]

    report = measure_parity(engine, loud, processor, groups, temperature=temperature)

    record_property("parity", report.as_dict())
    assert report.failures(FLOAT32) == []
    assert min(report.spread, *(part.spread for part in report.segments.values())) >= 1
    assert {name: part.tokens for name, part in report.segments.items()}["sampling"] == 3 * 4 * 12
    assert set(report.controls) == {"wrong_durations", "shifted_pixels", "permuted_scenes"}


@FOR_EACH_FAMILY
@pytest.mark.parametrize("tool", ["span_fps", "zoom"])
def test_a_call_forced_on_a_policy_that_writes_none_is_scored_alike(
    tool, engine, processor, loud, tmp_path, record_property
):
    """Its own tokens were drawn at another temperature than the call is scored at."""
    from actors.rollout_runner import RolloutRunner
    from rl.evaluation.parity import measure_parity

    noise = np.random.default_rng(0).integers(0, 256, (80, 64, 64, 3), dtype=np.uint8)  # shifted pixels must tell
    write_mp4(noise, 10, tmp_path / "clip.mp4")
    task, pixels = make_task(tmp_path / "clip.mp4"), 4 * processor.geometry.unit**2
    with make_reader() as reader:
        coarse = CoarseFrameRules(fps=1.0, max_pixels=pixels)
        rules = RetrievalRules(max_pixels=pixels, zoom_max_pixels=4 * pixels, tools=(tool,))
        runner = RolloutRunner(
            engine,
            EpisodeContext(processor, reader, coarse, rules, 1024),
            Sampling(80, 0.7),
            group_size=2,
            seed=0,
        )
        forcing = CallForcing(engine.generate, processor, builtin_toolbox(rules, processor))
        group = asyncio.run(runner.roll_out(task, step=0, greedily=False, generate=forcing))

    report = measure_parity(engine, loud, processor, [group], temperature=0.7)

    record_property("parity", report.as_dict())
    asked = [turn.completion for one in group.trajectories_G for turn in one.turns[:-1]]  # a malformed call before it
    looks = [one.turns[-2].completion for one in group.trajectories_G]
    assert [[call.tool for call in one.granted_calls] for one in group.trajectories_G] == [[tool], [tool]]
    assert all(0 < look.logprobs.count(NOT_DRAWN) < len(look.logprobs) for look in looks)
    assert report.failures(FLOAT32) == []
    assert report.segments["sampling"].tokens == sum(len(turn.token_ids) for turn in asked)


def test_what_is_shown_at_the_second_turn_is_seen(engine, processor):
    first, shown = clip(processor, seed=1), clip(processor, seed=2, start_s=3.0)
    other = processor.make_frames(255 - shown.pixels_THWC, shown.timestamps_s_T)
    other = replace(other, scene_lengths=shown.scene_lengths)
    again = clip(processor, seed=2, start_s=3.0)
    ids = (*opening(processor, first), *processor.encode("<span>"), *processor.video_block(shown))

    seen = logprobs(engine, ids, [first, shown])

    assert np.abs(logprobs(engine, ids, [first, other]) - seen).max() > 1e-3
    assert np.abs(logprobs(engine, ids, [first, again]) - seen).max() < 1e-5


def test_seeds_make_sampling_independent_of_the_batch(engine, processor):
    video = clip(processor, seed=3)
    requests = [request(opening(processor, video), [video], seed=seed, tokens=24) for seed in range(8)]

    together = run(engine, requests)
    alone = [run(engine, [one])[0] for one in requests]

    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    assert len({one.token_ids for one in together}) == 8


def test_full_kv_cache_delays_requests_and_changes_nothing_else(engine, open_engine, processor, policy_dir):
    video = clip(processor, seed=3)
    requests = [request(opening(processor, video), [video], seed=seed, tokens=256) for seed in range(16)]
    config = EngineConfig(max_model_len=1024, kv_cache_bytes=2**20)  # 2,048 tokens; the requests need twice as many
    at_once = run(engine, requests)

    delayed = run(open_engine(policy_dir, PolicyConfig(scenes=SCENES), config), requests)

    assert [one.token_ids for one in delayed] == [one.token_ids for one in at_once]


def test_tokens_the_policy_may_not_write_are_never_sampled(engine, processor):
    allowed_V = processor.allowed_token_mask()
    prompts = [request(processor.encode("Look"), [], seed=seed, tokens=200, temperature=2.0) for seed in range(8)]

    sampled = np.concatenate([one.token_ids for one in run(engine, prompts)])

    assert len(np.unique(sampled)) > 0.5 * allowed_V.sum()
    assert allowed_V[sampled].all()


def test_scores_are_over_the_allowed_tokens_only(engine, processor):
    video = clip(processor, seed=4)
    ids = opening(processor, video)

    scores = np.array(engine.score(ids, [video]))

    banned_T = ~processor.allowed_token_mask()[list(ids)]
    assert len(scores) == len(ids)
    assert scores[0] == 0
    assert np.isneginf(scores[banned_T]).all()
    assert np.isfinite(scores[~banned_T]).all()


def test_stop_token_is_returned_with_its_logprob(engine, processor):
    stops = tuple(range(0, 400))

    (completion,) = run(engine, [request(processor.encode("Look at"), [], tokens=100, stop=stops)])

    assert completion.finish_reason == "stop"
    assert completion.token_ids[-1] in stops
    assert not set(completion.token_ids[:-1]) & set(stops)
    assert len(completion.logprobs) == len(completion.token_ids)


def test_a_profile_holds_what_the_engine_computed_meanwhile_in_whichever_thread(engine, processor, tmp_path):
    for step in (1, 2):  # one can follow another
        path = tmp_path / f"step_{step}" / "rollout_0.json.gz"
        engine.begin_profile()
        run(engine, [request(processor.encode("Look at"), [], tokens=3)])
        assert engine.write_profile(path) == ["rollout_0.json.gz"]
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        assert {"aten::embedding", "aten::mm"} & {event.get("name") for event in events}


@pytest.mark.parametrize("change", ["one placeholder less", "video missing", "video too many"])
def test_placeholders_that_do_not_match_their_videos_are_refused(engine, processor, change):
    from actors.engine.engine import EngineError

    video = clip(processor, seed=5)
    ids = list(opening(processor, video))
    if change == "one placeholder less":
        ids.remove(processor.ids.video_pad)
    videos = {"video missing": [], "video too many": [video, clip(processor, seed=6)]}.get(change, [video])
    fine = request(opening(processor, video), [video], name="fine")

    with pytest.raises(EngineError, match=r"'bad'.*placeholders") as refused:
        run(engine, [request(ids, videos, name="bad"), fine])

    assert refused.value.request_id == "bad"
    assert run(engine, [fine])[0].token_ids  # the engine lives on


@pytest.mark.parametrize(
    ("bad", "cause"), [({"token_ids": [5] * 3000}, "maximum"), ({"token_ids": [5], "temperature": -1.0}, "temperature")]
)
def test_request_that_cannot_be_served_fails_alone(engine, bad, cause):
    from actors.engine.engine import EngineError

    with pytest.raises(EngineError, match=f"'bad'.*{cause}"):
        run(engine, [request(**bad, videos=[], name="bad")])


def test_abandoned_request_leaves_the_engine_free(engine, processor):
    async def give_up():
        await asyncio.wait_for(engine.generate(request(processor.encode("Look"), [], tokens=2000)), timeout=0.05)

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())

    assert run(engine, [request(processor.encode("Look"), [], tokens=3)])[0].policy_version == engine.policy_version


@FOR_EACH_FAMILY
def test_new_visual_weights_are_seen_even_in_cached_clips_and_old_ones_return(engine, processor, policy_dir):
    weights = stored_weights(policy_dir)
    name = next(name for name in weights if "visual.blocks.0.mlp" in name)
    video = clip(processor, seed=8)
    ids = opening(processor, video)
    before, version = logprobs(engine, ids, [video]), engine.policy_version
    random = torch.Generator().manual_seed(0)

    engine.load_weights([(name, weights[name] + torch.randn(weights[name].shape, generator=random))], version + 1)
    during = run(engine, [request(ids, [video], tokens=6, temperature=0.0)])[0]
    engine.load_weights([(name, weights[name].numpy())], version + 2)
    after = logprobs(engine, ids, [video])

    assert np.abs(np.array(during.logprobs) - before).max() > 1e-3
    assert during.policy_version == version + 1
    assert during.cached_prompt_tokens == 0
    assert after.tolist() == before.tolist()


@FOR_EACH_HEAD
def test_engine_computes_with_what_was_pushed(engine, processor, build_policy, policy_dir, record_property):
    """Every trained parameter arrives, and the engine then is the learner: with a head of its own or a tied one."""
    from rl.evaluation.parity import measure_parity
    from rl.policy.model import load_policy

    learner = load_policy(build_policy(9), SCENES)
    is_tied = learner.lm_head.weight is learner.get_input_embeddings().weight
    if not is_tied:
        learner.lm_head.weight.data *= LOUDER
    pushed = {name: value.detach() for name, value in learner.named_parameters()}

    engine.load_weights(pushed.items(), engine.policy_version + 1)
    arrived = engine.checksums(list(pushed))
    report = measure_parity(engine, learner, processor, [play_group(engine, processor, siblings=2)], temperature=1.0)
    engine.load_weights(stored_weights(policy_dir).items(), engine.policy_version + 1)

    record_property("parity", report.as_dict())
    assert ("lm_head.weight" in pushed) is not is_tied
    assert arrived == checksums_of(pushed)
    assert report.failures(FLOAT32) == [] and report.spread >= 1


@FOR_EACH_FAMILY
def test_every_parameter_can_be_replaced_and_read_back(engine, policy_dir):
    weights = stored_weights(policy_dir)
    assert engine.checksums(list(weights)) == checksums_of(weights)
    random = torch.Generator().manual_seed(1)
    fresh = {name: torch.randn(value.shape, generator=random) for name, value in weights.items()}

    engine.load_weights(fresh.items(), engine.policy_version + 1)
    assert engine.checksums(list(weights)) == checksums_of(fresh)

    engine.load_weights(weights.items(), engine.policy_version + 1)
    assert engine.checksums(list(weights)) == checksums_of(weights)


@pytest.mark.parametrize(
    ("name", "shape"), [("model.visual.nowhere.weight", (4,)), ("model.language_model.norm.weight", (7,))]
)
def test_weights_that_are_not_the_models_are_refused_and_nothing_is_sampled_until_others_came(
    engine, policy_dir, name, shape
):
    from actors.engine.engine import EngineError

    version = engine.policy_version
    with pytest.raises(EngineError, match=f"weights {version + 1}"):
        engine.load_weights([(name, torch.zeros(shape))], version + 1)
    with pytest.raises(EngineError, match="nowhere"):
        engine.checksums(["model.visual.nowhere.weight"])
    assert engine.policy_version == version
    with pytest.raises(EngineError, match=f"a mixture: part of version {version + 1}"):  # nothing is sampled from it
        run(engine, [request([5], [], tokens=1)])
    engine.load_weights(stored_weights(policy_dir).items(), version + 2)
    assert run(engine, [request([5], [], tokens=1)])[0].policy_version == version + 2


def test_weights_wait_for_the_requests_before_them(engine, processor, policy_dir):
    weights, version = stored_weights(policy_dir), engine.policy_version

    async def push_while_it_runs():
        running = asyncio.ensure_future(engine.generate(request(processor.encode("Look"), [], tokens=300)))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(engine.load_weights, weights.items(), version + 1)
        return (await running).policy_version, (await engine.generate(request([5], [], tokens=1))).policy_version

    assert asyncio.run(push_while_it_runs()) == (version, version + 1)


def test_an_engine_that_sleeps_answers_when_weights_and_cache_are_awake_as_before(engine, processor):
    asked = [request(processor.encode("Look"), [], tokens=8, seed=3)]
    before = run(engine, asked)
    engine.sleep()

    async def ask_while_it_sleeps():
        waiting = asyncio.ensure_future(engine.generate(asked[0]))
        await asyncio.to_thread(engine.wake, "weights")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), timeout=0.3)
        await asyncio.to_thread(engine._driver._engine.wake_up, ["kv_cache"])  # `wake` would wait for the request
        return await waiting

    assert asyncio.run(ask_while_it_sleeps()).token_ids == before[0].token_ids
    engine.wake("kv_cache")  # of one that is awake nothing changes
    assert run(engine, asked)[0].logprobs == before[0].logprobs


def test_an_engine_that_slept_without_its_weights_answers_as_before_once_all_of_them_are_pushed(
    engine, processor, policy_dir
):
    asked = [request(processor.encode("Look"), [], tokens=8, seed=3)]
    before, weights = run(engine, asked), stored_weights(policy_dir)
    engine.sleep(drops_weights=True)
    engine.wake("weights")
    held = engine.checksums(list(weights))
    sent = engine.load_weights(weights.items(), engine.policy_version)
    engine.wake("kv_cache")
    assert not held.items() & sent.items()  # nothing was left
    assert all(torch.isfinite(live).all() for live in engine._driver.call("get_model")[0].parameters())
    assert run(engine, asked)[0].logprobs == before[0].logprobs


@pytest.fixture
def exact_engine(exact, open_engine, policy_dir):
    return open_engine(policy_dir, PolicyConfig(scenes=SCENES), deterministic=True)


def two_looks(processor, *, tasks=3, siblings=4) -> list[GenerateRequest]:
    """First and second turns of several tasks, of unequal lengths."""
    requests = []
    for task in range(tasks):
        first = clip(processor, seed=task, frames=8 + 3 * task)
        prompt = opening(processor, first)
        for sibling in range(siblings):
            window = clip(processor, seed=50 + siblings * task + sibling, frames=2 + sibling, start_s=1.0, fps=6.0)
            ids = (*prompt, *processor.encode("<span>1.0 - 2.0</span>"), *processor.video_block(window))
            requests += [request(prompt, [first], seed=sibling, tokens=9 + sibling)]
            requests += [request(ids, [first, window], seed=sibling, tokens=15 + sibling)]
    return requests


def bits(completions) -> list[tuple]:
    return [(one.token_ids, tuple(logprob.hex() for logprob in one.logprobs)) for one in completions]


@FOR_EACH_FAMILY
def test_a_deterministic_engine_draws_the_same_bits_alone_in_a_batch_and_in_any_order(exact_engine, processor):
    requests = two_looks(processor)

    def reset_caches():
        exact_engine._driver.exclusively(lambda driver: driver.reset_caches())

    alone = []
    for one in requests:
        reset_caches()
        alone += bits(run(exact_engine, [one]))
    reset_caches()
    batched = bits(run(exact_engine, requests))
    warm = bits(run(exact_engine, requests))  # prefixes and videos are cached
    reset_caches()
    backwards = bits(run(exact_engine, requests[::-1]))[::-1]

    assert len(set(alone)) == len(alone)
    assert batched == alone
    assert warm == alone
    assert backwards == alone


def test_a_turn_after_sampled_ones_has_the_same_bits_where_nothing_is_cached(exact_engine, processor):
    """As on the engine that takes over from a dead one."""
    group = play_group(exact_engine, processor, siblings=8, seed=5)
    again = []
    for sibling, trajectory in enumerate(group.trajectories_G):
        first, second = trajectory.turns
        ids = (*first.context_token_ids, *first.completion.token_ids, *second.context_token_ids)
        exact_engine._driver.exclusively(lambda driver: driver.reset_caches())
        again += run(exact_engine, [request(ids, [group.coarse_frames, second.frames], seed=sibling)])

    assert bits(again) == bits(trajectory.turns[1].completion for trajectory in group.trajectories_G)


def test_requests_put_off_by_a_full_kv_cache_draw_the_same_bits_in_another_engine(
    exact_engine, open_engine, processor, policy_dir
):
    video = clip(processor, seed=3)
    requests = [request(opening(processor, video), [video], seed=seed, tokens=256) for seed in range(16)]
    config = EngineConfig(max_model_len=1024, kv_cache_bytes=2**20)  # 2,048 tokens; the requests need twice as many
    at_once = bits(run(exact_engine, requests))

    other = open_engine(policy_dir, PolicyConfig(scenes=SCENES), config, deterministic=True)

    assert bits(run(other, requests)) == at_once


def refused(policy_dir, open_engine):
    """What a deterministic engine is refused with here."""
    open_engine(policy_dir, PolicyConfig(scenes=SCENES)).close()
    with pytest.raises(ConfigError) as error:
        open_engine(policy_dir, PolicyConfig(scenes=SCENES), deterministic=True)
    return str(error.value)


def test_a_machine_where_no_padding_is_enough_is_refused_with_processor_and_remedy(
    policy_dir, open_engine, monkeypatch
):
    from rl.policy.batch_invariant import RowPadding
    from rl.policy.kernels import processor

    monkeypatch.setattr("actors.engine.engine.PADDINGS", (RowPadding(1),))
    refusal = refused(policy_dir, open_engine)
    assert refusal.startswith(
        f"rollout.deterministic: on this machine ({processor()}) bits depend on the batch in linear"
    )
    assert "products in multiples of 1 rows" in refusal
    assert "rollout.engine.max_num_seqs=1" in refusal


def test_attention_that_depends_on_the_batch_is_found_and_named(policy_dir, open_engine, monkeypatch):
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl as Attention

    forward = Attention.forward

    def split_differently(self, layer, queries, *rest, **named):
        output = forward(self, layer, queries, *rest, **named)
        return output.mul_(1 + 2**-20) if len(queries) > 1 else output

    monkeypatch.setattr(Attention, "forward", split_differently)
    assert "bits depend on the batch in attention of 2 heads of 32" in refused(policy_dir, open_engine)


@pytest.mark.parametrize(
    "scenes",
    [ScenesConfig(timestamps="none"), ScenesConfig(mode="fixed"), ScenesConfig(mode="fixed6", timestamps="none")],
    ids=lambda scenes: f"{scenes.mode}-{scenes.timestamps}",
)
def test_engine_and_learner_agree_however_videos_are_encoded(scenes, open_engine, tmp_path, record_property):
    from rl.evaluation.parity import measure_parity
    from rl.policy.model import load_policy
    from rl.policy.tiny import build_tiny_policy

    folder = build_tiny_policy(SMALL, scenes, tmp_path, seed=1)
    processor = Processor.from_pretrained(folder, scenes)
    engine = open_engine(folder, PolicyConfig(scenes=scenes))
    group = play_group(engine, processor, siblings=2, frames=13)

    report = measure_parity(engine, load_policy(folder, scenes), processor, [group], temperature=1.0)

    record_property("parity", report.as_dict())
    assert report.failures(FLOAT32) == []


def checksums_of(weights) -> dict[str, str]:
    return {name: in_words(checksum(value).tolist()) for name, value in weights.items()}


def stored_weights(folder) -> dict[str, torch.Tensor]:
    from rl.policy.model import load_policy

    return {name: value.detach() for name, value in load_policy(folder, SCENES).named_parameters()}


@FOR_EACH_FAMILY
def test_bf16_engine_and_learner_agree_loosely(open_engine, policy_dir, processor, record_property):
    from rl.evaluation.parity import measure_parity

    engine = open_engine(policy_dir, PolicyConfig(scenes=SCENES, dtype="bfloat16"), version=3)
    model = make_loud(policy_dir, engine, "bfloat16")
    group = play_group(engine, processor, siblings=4)

    report = measure_parity(engine, model, processor, [group], temperature=1.0)

    record_property("parity", report.as_dict())
    assert group.trajectories_G[0].turns[0].completion.policy_version == 4
    assert report.failures(BFLOAT16) == [] and report.spread >= 1


def test_bf16_weights_arrive_as_bits_too(open_engine, policy_dir):
    engine = open_engine(policy_dir, PolicyConfig(scenes=SCENES, dtype="bfloat16"), version=3)
    name = "model.language_model.norm.weight"
    value = torch.randn(SMALL.hidden_size, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)

    engine.load_weights([(name, value.view(torch.uint16).numpy())], 4)

    assert engine.checksums([name]) == checksums_of({name: value})


def test_second_engine_in_a_process_is_refused(engine, policy_dir):
    from actors.engine.engine import make_engine

    with pytest.raises(RuntimeError, match="holds an engine already"):
        make_engine(policy_dir, PolicyConfig(scenes=SCENES), ENGINE, seed=0)


BARE = """
import asyncio, os, shutil, sys
from rl.policy.vllm.plugin import engine_environment, without_sound
os.environ.update(engine_environment("cpu"))
with without_sound():
    from actors.engine.engine import make_engine
from rl.config.policy import PolicyConfig, ScenesConfig
from rl.config.rollout import EngineConfig
from rl.trajectory import GenerateRequest, Sampling
assert not [name for name in ("gcc", "cc", "g++", "clang") if shutil.which(name)]
engine = make_engine(sys.argv[1], PolicyConfig(scenes=ScenesConfig(budget="none")), EngineConfig(), 0)
print(asyncio.run(engine.generate(GenerateRequest("r", (5, 6, 7), (), Sampling(4)))).token_ids)
assert not [name for name in ("scipy.signal", "vllm.v1.engine.async_llm") if name in sys.modules]
engine.close()
"""


def test_engine_needs_no_compiler_and_imports_neither_sound_nor_the_driver_of_gpus(policy_dir, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX")}
    (tmp_path / "bin").mkdir()
    for program in ("uname", "ldconfig", "lscpu"):  # of the few that Python asks for
        if found := shutil.which(program):
            (tmp_path / "bin" / program).symlink_to(found)
    environment |= {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path)}  # nothing compiled earlier is found either

    run_script(BARE, policy_dir, environment)


def test_an_engine_that_breaks_tells_everybody_who_waits(open_engine, policy_dir, processor):
    """The request running, and the push waiting for it to end."""
    from actors.engine.engine import EngineError

    engine = open_engine(policy_dir, PolicyConfig(scenes=SCENES), version=99)
    driver = engine._driver
    step = driver._step

    def break_once_a_push_waits():
        step()
        if driver._waiting is not None:
            raise ConnectionError("the engine is gone")

    driver._step = break_once_a_push_waits
    with ThreadPoolExecutor() as threads:
        request = GenerateRequest("r", tuple(processor.encode(QUESTION)), (), Sampling(200))
        running = threads.submit(asyncio.run, engine.generate(request))
        while not driver._running:
            time.sleep(0.001)
        push = threads.submit(engine.load_weights, [], 100)
        for waiting in (running, push):
            with pytest.raises(EngineError, match="the engine is gone"):
                waiting.result(timeout=60)
    assert engine.policy_version == 99


def test_nobody_waits_for_ever():
    from actors.engine.driver import result_within

    never = Future()
    with pytest.raises(TimeoutError, match="the engine did not start within 0 s"):
        result_within(0.01, never, "start")
    assert never.cancelled()


ENGINE_ON_TWO_WORKERS = """
import asyncio, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import pytest
import torch
from rl.weight_transfer.description import WeightTensor, in_buckets
from rl.weight_transfer.link import MeetingPoint, listen, open_link
from rl.weight_transfer.stream import send_weights
from actors.engine.engine import EngineError, VllmEngine
from actors.engine.async_driver import AsyncDriver
from rl.config.policy import PolicyConfig
from rl.config.rollout import EngineConfig
from rl.evaluation.parity import measure_parity
from rl.policy.model import load_policy
from rl.policy.processor import Processor
from tests.actors.engine.test_engine import FLOAT32, SCENES, checksums_of, clip, make_loud
from tests.actors.engine.test_engine import opening, play_group, request, run

def spoil(worker):
    if worker.rank == 1:
        worker.get_model().language_model.model.layers[0].self_attn.qkv_proj.weight[-1] += 1

def main(folder):
    two = EngineConfig(tensor_parallel_size=2)
    engine = VllmEngine(folder, PolicyConfig(scenes=SCENES), two, 0, driver=AsyncDriver)
    processor, learner = Processor.from_pretrained(folder, SCENES), load_policy(folder, SCENES)
    weights = {name: value.detach() for name, value in learner.named_parameters()}
    digests = checksums_of(weights)
    video = clip(processor, seed=0)
    prompt = opening(processor, video)

    with pytest.raises(EngineError, match="placeholders"):
        run(engine, [request(prompt[:5], [video])])
    before = run(engine, [request(prompt, [video], seed=seed) for seed in range(8)])
    stats = engine.stats()
    assert stats["encoder_items"] == 1 and stats["requests"] == 8, stats
    assert len({one.token_ids for one in before}) == 8
    assert engine.checksums(list(weights)) == digests

    loud, group = make_loud(folder, engine), play_group(engine, processor, siblings=4)
    report = measure_parity(engine, loud, processor, [group], temperature=1.0)
    assert report.failures(FLOAT32) == [], report.as_dict()

    changed = {name: value.flip(0) for name, value in weights.items()}
    engine.load_weights(changed.items(), 2)
    assert engine.checksums(list(weights)) == checksums_of(changed)
    (moved,) = run(engine, [request(prompt, [video])])
    engine.load_weights(weights.items(), 3)
    assert engine.checksums(list(weights)) == digests
    (returned,) = run(engine, [request(prompt, [video])])
    assert [one.policy_version for one in (before[0], moved, returned)] == [0, 2, 3]
    assert returned.token_ids == before[0].token_ids
    assert np.abs(np.array(returned.logprobs) - before[0].logprobs).max() < 1e-5
    assert moved.logprobs != before[0].logprobs

    listening = listen("127.0.0.1")  # over a link every worker is a member, and gets all of it
    point = MeetingPoint("gloo", "127.0.0.1", listening.getsockname()[1], 3, 60.0)
    described = [WeightTensor(name, "float32", tuple(value.shape)) for name, value in changed.items()]
    buckets = in_buckets(described, 2**18)
    with ThreadPoolExecutor(1) as sending:
        link = sending.submit(open_link, point, 0, torch.device("cpu"), listening)
        engine.open_link(point, 1)
        sent = sending.submit(send_weights, link.result(), buckets, changed.items())
        assert engine.receive_weights(buckets, 4) == []
        assert sent.result() == engine.checksums(list(weights)) == checksums_of(changed)
    assert run(engine, [request(prompt, [video])])[0].policy_version == 4
    engine.load_weights(weights.items(), 5)

    engine._driver.call(spoil)
    held = engine.checksums(list(weights))
    wrong = {name for name in weights if held[name] != digests[name]}
    assert wrong == {"model.language_model.layers.0.self_attn.v_proj.weight"}, wrong
    engine.close()

if __name__ == "__main__":
    main(sys.argv[1])
"""


@pytest.mark.soak  # a minute; one worker: tests/test_gpu.py
@pytest.mark.parametrize("build_policy", ["qwen3_vl"], indirect=True)
def test_driver_of_gpus_keeps_the_same_promises_on_several_workers(policy_dir, tmp_path):
    """AsyncLLM with two workers in processes of their own, the policy cut over them as on two GPUs; here on the CPU."""
    script = tmp_path / "engine_on_two_workers.py"
    script.write_text(ENGINE_ON_TWO_WORKERS)
    threads = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    processes = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}  # to spoil a shard

    run_script(script, policy_dir, os.environ | threads | processes | {"PYTHONPATH": str(ROOT)})


def run_script(script, policy_dir, environment) -> None:
    command = [sys.executable, "-c", script] if isinstance(script, str) else [sys.executable, str(script)]
    done = subprocess.run(
        [*command, str(policy_dir)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
