"""Groups of siblings against a scripted engine: real clips, real processor, no vLLM."""

import asyncio
import threading
from dataclasses import replace
from itertools import cycle

import pytest

from envs.data.dataset import tasks_for_step
from envs.env import RetrievalEnv
from envs.initial_observation import CoarseFrameRules
from envs.prompts import encode_reply
from envs.rollout import EpisodeContext, TokenHistory, derive_seed, greedy, occurrences, run_group
from envs.tools.rules import RetrievalRules
from rl.trajectory import (
    MalformedCall,
    RefusedCall,
    Sampling,
    Segment,
    StopReason,
    trajectory_tokens,
    trajectory_videos,
)
from tests.envs.setting import make_processor, make_reader, make_task, write_clip
from tests.fakes import ScriptedEngine

COARSE = CoarseFrameRules(fps=1.0, min_frames=4, max_frames=8, max_pixels=3136, max_visual_tokens=512)
SAMPLING = Sampling(max_new_tokens=200)
LOOK = "<think>Look.<span>2 - 4</span><fps>4</fps>"
ANSWER = "Red.</think><answer>B</answer>"


class CountingReader:
    """The real reader, and what it was asked."""

    def __init__(self, reader):
        self._reader, self.asked = reader, []

    def describe(self, path):
        return self._reader.describe(path)

    def frames(self, path, times_s, size, *later):
        self.asked.append(times_s)
        return self._reader.frames(path, times_s, size, *later)


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return make_processor(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", seconds=8.0, fps=10)


@pytest.fixture
def reader():
    with make_reader() as reader:
        yield CountingReader(reader)


@pytest.fixture
def engine(processor):
    def make(*siblings):
        def ids(text, is_last):
            return (*encode_reply(text, processor), *((processor.ids.im_end,) if is_last else ()))

        return ScriptedEngine([[ids(text, text is turns[-1]) for text in turns] for turns in siblings])

    return make


@pytest.fixture
def roll_out(processor, reader, clip):
    def run(generate, group_size, *, clip=clip, sampling=SAMPLING, max_calls=1, **numbers):
        around = EpisodeContext(processor, reader, COARSE, RetrievalRules(max_calls=max_calls, max_pixels=3136), 1024)
        return asyncio.run(
            run_group(
                make_task(clip),
                group_size=group_size,
                sampling=sampling,
                generate=generate,
                episode_context=around,
                **{"seed": 0, "step": 0} | numbers,
            )
        )

    return run


def test_siblings_are_independent_and_keep_their_order(roll_out, engine):
    answered = ["<think>Red.</think><answer>B</answer>"]
    group = roll_out(engine([LOOK, ANSWER], answered, ["<fps>2</fps>", ANSWER]), 3)
    assert [len(trajectory.turns) for trajectory in group.trajectories_G] == [2, 1, 2]
    assert [trajectory.stop_reason for trajectory in group.trajectories_G] == [StopReason.ANSWERED] * 3
    assert [turn.segment for turn in group.trajectories_G[0].turns] == [Segment.SAMPLING, Segment.REASONING]
    assert isinstance(group.trajectories_G[2].calls[0], MalformedCall)


def test_the_coarse_frames_are_decoded_once_and_shared_by_all(roll_out, engine, reader):
    scripted = engine(*[[LOOK, ANSWER]] * 4)
    group = roll_out(scripted, 4)
    assert len(reader.asked) == 1 + 4  # the initial, then each sibling's own window
    assert all(request.videos[0] is group.coarse_frames for request in scripted.requests)
    assert group.duration_s == pytest.approx(8.0)


def test_each_prompt_is_the_one_before_with_what_was_sampled_and_inserted(roll_out, engine):
    scripted = engine([LOOK, ANSWER], [LOOK, ANSWER])
    group = roll_out(scripted, 2)
    for sibling, trajectory in enumerate(group.trajectories_G):
        first, second = scripted.of(sibling)
        look, answer = trajectory.turns
        assert first.prompt_token_ids == look.context_token_ids
        assert second.prompt_token_ids == (
            *first.prompt_token_ids,
            *look.completion.token_ids,
            *answer.context_token_ids,
        )
        assert trajectory_tokens(trajectory) == (*second.prompt_token_ids, *answer.completion.token_ids)
        assert second.videos == trajectory_videos(group.coarse_frames, trajectory.turns)


def test_the_engine_is_told_where_to_stop_and_how_much_is_left(roll_out, engine, processor):
    scripted = engine([LOOK, ANSWER])
    group = roll_out(scripted, 1)
    first, second = (request.sampling for request in scripted.requests)
    assert first.stop_token_ids == (processor.ids.fps_close, processor.ids.im_end)
    written = len(group.trajectories_G[0].turns[0].completion.token_ids)
    assert (first.max_new_tokens, second.max_new_tokens) == (200, 200 - written)


def test_an_allowance_used_up_truncates(roll_out, engine):
    group = roll_out(engine([LOOK, ANSWER]), 1, sampling=Sampling(max_new_tokens=5))
    (trajectory,) = group.trajectories_G
    assert trajectory.stop_reason == StopReason.TRUNCATED
    assert len(trajectory.turns[0].completion.token_ids) == 5


@pytest.mark.parametrize("content", [None, b"", b"not a video at all"])
def test_a_video_that_cannot_be_read_gives_a_group_of_video_errors(roll_out, engine, tmp_path, content):
    broken = tmp_path / "broken.mp4"
    if content is not None:
        broken.write_bytes(content)
    scripted = engine([ANSWER])
    group = roll_out(scripted, 4, clip=broken)
    assert (len(group.trajectories_G), group.coarse_frames, scripted.requests) == (4, None, [])
    for trajectory in group.trajectories_G:
        assert (trajectory.stop_reason, trajectory.turns) == (StopReason.VIDEO_ERROR, ())
        assert "broken.mp4 (coarse frames)" in trajectory.note
        assert (trajectory.clip_failure.path, trajectory.clip_failure.window) == (str(broken), None)


def test_retrieval_can_be_turned_off(roll_out, engine, reader):
    group = roll_out(engine([LOOK, ANSWER]), 1, max_calls=0)
    assert group.trajectories_G[0].calls == (RefusedCall("retrieval is turned off"),)
    assert len(reader.asked) == 1


def test_seeds_are_a_pure_function_of_the_call(roll_out, engine):
    def seeds(**settings):
        scripted = engine([LOOK, ANSWER], [LOOK, ANSWER])
        roll_out(scripted, 2, **settings)
        return [request.sampling.seed for sibling in (0, 1) for request in scripted.of(sibling)]

    again = seeds(seed=7, step=3)
    assert again == [derive_seed(7, 3, "t", sibling, turn) for sibling in (0, 1) for turn in (0, 1)]
    assert again == seeds(seed=7, step=3)
    assert len({*again, *seeds(seed=8, step=3), *seeds(seed=7, step=4)}) == 12
    assert all(0 <= seed < 2**63 for seed in again)


def test_tasks_and_seeds_of_a_step_do_not_know_how_many_engines_share_it(processor, reader, clip, engine):
    """So a run that is resumed with more or fewer engines samples the same: five groups of two, dealt to 1, 2 or 5."""
    around = EpisodeContext(processor, reader, COARSE, RetrievalRules(max_calls=1, max_pixels=3136), 1024)
    known = [replace(make_task(clip), task_id=name) for name in "abc"]  # five places: an epoch ends within the step

    def rolled_out(num_workers):
        engines = [engine([LOOK, ANSWER], [LOOK, ANSWER]) for _ in range(num_workers)]
        tasks = tasks_for_step(known, seed=7, step=1, tasks_per_step=5)
        seeds = []
        for task, times, mine in zip(tasks, occurrences([t.task_id for t in tasks], 0), cycle(engines), strict=False):
            before = len(mine.requests)
            numbers = {"seed": 7, "step": 1, "occurrence": times}
            asyncio.run(
                run_group(task, group_size=2, sampling=SAMPLING, generate=mine, episode_context=around, **numbers)
            )
            seeds.append((task.task_id, {request.sampling.seed for request in mine.requests[before:]}))
        return seeds

    assert rolled_out(1) == rolled_out(2) == rolled_out(5)
    assert len({seed for _, seeds in rolled_out(1) for seed in seeds}) == 20  # groups x siblings x turns


def test_a_task_drawn_again_in_a_step_gets_other_seeds(roll_out, engine):
    def seeds(**numbers):
        scripted = engine([LOOK, ANSWER], [LOOK, ANSWER])
        roll_out(scripted, 2, **numbers)
        return {request.sampling.seed for request in scripted.requests}

    assert seeds() == seeds(occurrence=0)
    assert len(seeds() | seeds(occurrence=1) | seeds(occurrence=2)) == 12


def test_groups_of_a_task_are_counted_within_an_attempt_and_attempts_do_not_meet():
    assert occurrences(["a", "b", "a", "a", "b"], attempt=0) == [0, 0, 1, 2, 1]
    first, second = occurrences(["a"] * 9, attempt=0), occurrences(["a"] * 9, attempt=1)
    assert len({*first, *second}) == 18


def test_request_names_are_unique_even_for_the_same_task_in_the_same_step(roll_out, engine):
    first, second = engine([LOOK, ANSWER]), engine([LOOK, ANSWER])
    roll_out(first, 1)
    roll_out(second, 1)
    assert len({request.request_id for request in first.requests + second.requests}) == 4


def test_greedy_takes_the_likeliest_token():
    assert greedy(Sampling(64, temperature=0.7, top_p=0.9, top_k=5)) == Sampling(64, temperature=0.0)


def test_it_is_known_where_the_time_went(roll_out, engine):
    group = roll_out(engine([LOOK, ANSWER], [ANSWER]), 2)
    assert set(group.seconds) == {"decode", "segment", "generate"}
    assert all(seconds > 0 for seconds in group.seconds.values())


def test_what_may_decode_runs_beside_the_event_loop_and_answers_are_read_in_it(roll_out, engine, monkeypatch):
    step, threads = RetrievalEnv.step, {LOOK: set(), ANSWER: set()}

    def recorded(env, completion):
        threads[LOOK if env.may_look(completion) else ANSWER].add(threading.current_thread() is threading.main_thread())
        return step(env, completion)

    monkeypatch.setattr(RetrievalEnv, "step", recorded)
    roll_out(engine([LOOK, ANSWER], [ANSWER], ["<fps>2</fps>", ANSWER]), 3)
    assert threads == {LOOK: {False}, ANSWER: {True}}


def test_an_engine_that_fails_stops_the_siblings_and_is_raised(roll_out, engine):
    scripted, stopped = engine([LOOK, ANSWER]), []

    async def fails_for_the_second(request):
        if request.request_id.rsplit("/", 2)[1] == "0":
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                stopped.append(request.request_id)
                raise
        raise ConnectionError("the engine is gone")

    with pytest.raises(ConnectionError, match="engine is gone"):
        roll_out(fails_for_the_second, 2)
    assert len(stopped) == 1 and scripted.requests == []


def tokens_of(group):
    return [trajectory_tokens(trajectory) for trajectory in group.trajectories_G]


@pytest.mark.parametrize("turns_kept", [(0, 0), (1, 0), (1, 1), (2, 1), (2, 2)])
def test_a_group_goes_on_elsewhere_from_its_token_history(roll_out, engine, turns_kept):
    history, script = TokenHistory(), [[LOOK, ANSWER], [LOOK, ANSWER]]
    whole = roll_out(engine(*script), 2, history=history)
    sampled = {0: [], 1: []}
    for sibling, turn, completion in history.take_new():
        assert turn == len(sampled[sibling])
        sampled[sibling].append(completion)
    assert history.take_new() == [] and history.advances == 1 + 4  # the initial, and every turn

    elsewhere, kept = engine(*script), {sibling: sampled[sibling][:turns] for sibling, turns in enumerate(turns_kept)}
    again = TokenHistory(kept)
    group = roll_out(elsewhere, 2, history=again)
    assert len(elsewhere.requests) == len(again.take_new()) == 4 - sum(turns_kept)  # nothing is sampled twice
    assert tokens_of(group) == tokens_of(whole)
    for old, new in zip(whole.trajectories_G, group.trajectories_G, strict=True):
        assert [turn.frames and turn.frames.digest for turn in old.turns] == [
            turn.frames and turn.frames.digest for turn in new.turns
        ]
    assert {request.sampling.seed for request in elsewhere.requests} <= {
        derive_seed(0, 0, "t", sibling, turn) for sibling in (0, 1) for turn in range(turns_kept[sibling], 2)
    }


def test_a_group_replayed_for_its_frames_goes_no_further_than_it_went_before(roll_out, engine):
    whole = roll_out(engine([LOOK, ANSWER], [LOOK, ANSWER]), 2)
    look, answer = (turn.completion for turn in whole.trajectories_G[1].turns)
    idle = engine()  # would fail if it were called

    group = roll_out(idle, 2, history=TokenHistory({0: [look, None], 1: [look, answer, None]}))
    assert idle.requests == []
    broken_off, complete = group.trajectories_G
    assert (len(broken_off.turns), broken_off.note) == (1, "replayed for its frames")
    assert trajectory_tokens(complete) == trajectory_tokens(whole.trajectories_G[1])

    (no_turn,) = roll_out(idle, 1, history=TokenHistory({0: [None]})).trajectories_G  # it had no room for a turn
    assert no_turn.turns == () and idle.requests == []
