"""One episode, rule by rule of the protocol. Clips are real files, the processor is the policy's own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.env import EngineContractError, Observation, RetrievalEnv, TokenBudget
from envs.initial_observation import CoarseFrameRules, make_initial_observation, unseen_frames
from envs.prompts import PromptFormat, encode_reply
from envs.tools.rules import RetrievalRules
from rl.trajectory import (
    Completion,
    MalformedCall,
    RefusedCall,
    RetrievalCall,
    Segment,
    StopReason,
    Trajectory,
    trajectory_tokens,
    trajectory_videos,
)
from tests.envs.setting import make_processor, make_reader, make_task, write_clip

RULES = RetrievalRules(max_calls=1, min_window_s=0.1, max_fps=10.0, max_frames=32, max_pixels=3136)
COARSE = CoarseFrameRules(fps=1.0, min_frames=4, max_frames=8, max_pixels=3136, max_visual_tokens=512)
LOOK = "<think>Look.<span>2 - 4</span><fps>4</fps>"
ANSWER = "Red.</think><answer>B</answer><|im_end|>"


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return make_processor(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", seconds=8.0, fps=10)


@pytest.fixture(scope="module")
def reader():
    with make_reader() as reader:
        yield reader


@pytest.fixture(scope="module")
def initial(processor, reader, clip):
    return make_initial_observation(
        make_task(clip), processor=processor, reader=reader, rules=COARSE, form=PromptFormat()
    )


@pytest.fixture
def make_env(processor, reader, clip, initial):
    def make(rules=RULES, max_new_tokens=256, max_model_len=1024, clip=clip):
        budget = TokenBudget(max_new_tokens, max_model_len)
        return RetrievalEnv(make_task(clip), initial, processor=processor, reader=reader, rules=rules, budget=budget)

    return make


@pytest.fixture
def say(processor):
    """A completion as an engine would return it: it stopped where it had to."""

    def complete(text, finish_reason="stop"):
        text, end = text.removesuffix("<|im_end|>"), (processor.ids.im_end,) * text.endswith("<|im_end|>")
        token_ids = (*encode_reply(text, processor), *end)
        return Completion(token_ids, (-0.5,) * len(token_ids), finish_reason, policy_version=3)

    return complete


def roll_out(env, *completions):
    """All steps; what each gave."""
    return [env.reset(), *(env.step(completion) for completion in completions)]


def test_an_episode_begins_with_the_opening_prompt_and_its_video(make_env, initial):
    env = make_env()
    assert env.reset() == Observation(initial.token_ids)
    assert (env.token_ids, env.videos) == (initial.token_ids, (initial.frames,))


def test_an_answer_without_a_look_is_one_reasoning_turn(make_env, say, initial):
    _, trajectory = roll_out(make_env(), say("<think>Red.</think><answer>B</answer><|im_end|>"))
    (turn,) = trajectory.turns
    assert (trajectory.stop_reason, turn.segment, turn.call) == (StopReason.ANSWERED, Segment.REASONING, None)
    assert (turn.context_token_ids, turn.frames) == (initial.token_ids, None)
    assert trajectory.answer_text == "<think>Red.</think><answer>B</answer>"


def test_a_call_is_answered_with_the_frames_of_its_window(make_env, say, processor):
    _, look, trajectory = roll_out(make_env(), say(LOOK), say(ANSWER))
    assert look.frames.timestamps_s_T == pytest.approx([2.0, 2.2, 2.5, 2.7, 3.0, 3.2, 3.5, 3.7])
    assert look.token_ids == tuple(processor.video_block(look.frames))
    grey_levels = np.asarray(look.frames.pixels_THWC).mean((1, 2, 3))
    assert grey_levels == pytest.approx([number * 8 % 240 for number in (20, 22, 25, 27, 30, 32, 35, 37)], abs=6)
    first, second = trajectory.turns
    assert (first.segment, second.segment) == (Segment.SAMPLING, Segment.REASONING)
    assert (first.frames, second.frames) == (None, look.frames)
    assert (first.call.num_frames, second.context_token_ids) == (8, look.token_ids)
    assert trajectory.answer_text == f"{LOOK}<video>Red.</think><answer>B</answer>"


def test_tokens_in_are_tokens_out(make_env, say, initial):
    env = make_env()
    looks, answers = say(LOOK), say(ANSWER)
    env.reset()
    look = env.step(looks)
    assert env.token_ids == (*initial.token_ids, *looks.token_ids, *look.token_ids)
    assert env.videos == (initial.frames, look.frames)
    trajectory = env.step(answers)
    assert trajectory_tokens(trajectory) == env.token_ids
    assert env.token_ids == (*initial.token_ids, *looks.token_ids, *look.token_ids, *answers.token_ids)
    assert trajectory_videos(initial.frames, trajectory.turns) == env.videos == (initial.frames, look.frames)


def test_every_placeholder_belongs_to_a_video_of_the_ledger(make_env, say, processor):
    env = make_env()
    roll_out(env, say(LOOK), say(ANSWER))
    assert env.token_ids.count(processor.ids.video_pad) == sum(map(processor.visual_tokens, env.videos))
    assert env.token_ids.count(processor.ids.vision_start) == len(env.videos)


def test_several_calls_where_the_rules_allow_them(make_env, say):
    env = make_env(RetrievalRules(max_calls=2, max_pixels=3136))
    *_, trajectory = roll_out(env, say(LOOK), say("More.<span>5 - 6</span><fps>2</fps>"), say(ANSWER))
    assert [turn.segment for turn in trajectory.turns] == [Segment.SAMPLING, Segment.SAMPLING, Segment.REASONING]
    assert [call.num_frames for call in trajectory.calls] == [8, 2]
    assert len(env.videos) == 3


def test_a_call_beyond_the_limit_is_answered_with_a_note(make_env, say, processor):
    _, _, note, trajectory = roll_out(make_env(), say(LOOK), say("More.<span>5 - 6</span><fps>2</fps>"), say(ANSWER))
    assert processor.decode(note.token_ids) == "\n[no frames: the limit of 1 per answer is reached]\n"
    assert note.frames is None
    assert trajectory.turns[1].segment == Segment.SAMPLING
    assert trajectory.calls[1] == RefusedCall("the limit of 1 per answer is reached")
    assert trajectory.stop_reason == StopReason.ANSWERED


def test_with_no_calls_allowed_retrieval_is_off(make_env, say):
    _, note, trajectory = roll_out(make_env(RetrievalRules(max_calls=0)), say(LOOK), say(ANSWER))
    assert note.frames is None
    assert trajectory.calls == (RefusedCall("retrieval is turned off"),)


@pytest.mark.parametrize(
    "request_text",
    [
        "<fps>2</fps>",
        "<span>4 - 2</span><fps>2</fps>",
        "<span>20 - 30</span><fps>2</fps>",
        "<span>a - b</span><fps>2</fps>",
        "<span>2 - 4</span><fps>often</fps>",
        "</fps>",
        "<span>1 - 2</span><fps><|vision_start|><|video_pad|></fps>",
    ],
)
def test_a_call_that_is_not_granted_is_told_why_and_the_episode_goes_on(make_env, say, processor, request_text):
    env = make_env()
    _, note, trajectory = roll_out(env, say(f"<think>Look.{request_text}"), say(ANSWER))
    call = trajectory.turns[0].call
    assert isinstance(call, MalformedCall | RefusedCall)
    assert processor.decode(note.token_ids) == f"\n[no frames: {call.reason}]\n"
    assert trajectory.turns[0].segment == Segment.SAMPLING  # a failed call is a call
    assert (trajectory.stop_reason, len(env.videos)) == (StopReason.ANSWERED, 1)
    assert trajectory.answer_text == f"<think>Look.{request_text}\n[no frames: {call.reason}]\n" + ANSWER[:-10]


def test_a_refused_call_leaves_the_allowance_for_a_good_one(make_env, say):
    *_, look, trajectory = roll_out(make_env(), say("<span>4 - 2</span><fps>2</fps>"), say(LOOK), say(ANSWER))
    assert look.frames.num_frames == 8
    assert [type(call) for call in trajectory.calls] == [RefusedCall, RetrievalCall]


def test_a_clamped_call_says_so(make_env, say):
    *_, trajectory = roll_out(make_env(), say("<span>6 - 99</span><fps>60</fps>"), say(ANSWER))
    (call,) = trajectory.calls
    assert (call.clamped, call.span.end_s, call.fps, call.num_frames) == (("end", "fps"), 8.0, 10.0, 20)


def test_the_allowance_of_new_tokens_ends_the_episode(make_env, say):
    completion = say("<think>On and on", finish_reason="length")
    _, trajectory = roll_out(make_env(max_new_tokens=len(completion.token_ids)), completion)
    assert (trajectory.stop_reason, trajectory.turns[0].segment) == (StopReason.TRUNCATED, Segment.REASONING)


def test_a_call_with_the_last_allowed_token_is_a_call_cut_short(make_env, say):
    completion = say(LOOK, finish_reason="length")
    _, trajectory = roll_out(make_env(max_new_tokens=len(completion.token_ids)), completion)
    (turn,) = trajectory.turns
    assert (trajectory.stop_reason, turn.segment, turn.call.num_frames) == (StopReason.TRUNCATED, Segment.SAMPLING, 8)


def test_an_end_token_is_an_end_even_as_the_last_allowed_one(make_env, say):
    completion = say(ANSWER, finish_reason="length")
    _, trajectory = roll_out(make_env(max_new_tokens=len(completion.token_ids)), completion)
    assert trajectory.stop_reason == StopReason.ANSWERED


def test_inserted_tokens_count_towards_the_context_but_not_towards_the_allowance(make_env, say):
    env = make_env(max_new_tokens=100, max_model_len=10_000)
    env.reset()
    assert env.new_tokens_left == 100
    completion = say(LOOK)
    look = env.step(completion)
    assert len(look.token_ids) > 8 and env.new_tokens_left == 100 - len(completion.token_ids)


def test_the_context_budget_limits_what_may_still_be_written(make_env, initial):
    env = make_env(max_new_tokens=100, max_model_len=len(initial.token_ids) + 7)
    env.reset()
    assert env.new_tokens_left == 7


def test_a_prompt_that_fills_the_context_is_truncated_before_it_begins(make_env, initial):
    trajectory = make_env(max_model_len=len(initial.token_ids)).reset()
    assert (trajectory.stop_reason, trajectory.turns) == (StopReason.TRUNCATED, ())


def test_frames_are_fewer_where_the_context_holds_no_more_and_the_window_stays_whole(make_env, say, initial, processor):
    allowance, call_tokens = 128, len(say(LOOK).token_ids)
    frame_tokens = {n: len(processor.video_block(unseen_frames([2.0] * n, (56, 56)))) for n in range(1, 8)}
    for num_frames, spare in frame_tokens.items():
        env = make_env(max_new_tokens=allowance, max_model_len=len(initial.token_ids) + allowance + spare + 2)
        _, look, trajectory = roll_out(env, say(LOOK), say(ANSWER))
        (call,) = trajectory.calls
        assert (call.num_frames, call.clamped) == (num_frames, ("frames",))
        assert (call.span.start_s, call.span.end_s) == (2.0, 4.0)
        assert look.frames.num_frames == num_frames
        written = call_tokens + len(say(ANSWER).token_ids)
        assert env.new_tokens_left == allowance - written  # looking never costs the answer


def test_without_room_for_one_frame_the_call_is_refused(make_env, say, initial, processor):
    env = make_env(max_new_tokens=128, max_model_len=len(initial.token_ids) + 128 + 3)
    _, note = roll_out(env, say(LOOK))
    assert processor.decode(note.token_ids) == "\n[no frames: no room is left for frames]\n"


def test_a_note_that_does_not_fit_ends_the_episode(make_env, say, initial):
    completion = say("<fps>2</fps>")
    env = make_env(max_model_len=len(initial.token_ids) + len(completion.token_ids) + 2)
    _, trajectory = roll_out(env, completion)
    assert (trajectory.stop_reason, len(trajectory.turns)) == (StopReason.TRUNCATED, 1)


def test_a_video_that_cannot_be_read_any_more_ends_the_episode_with_its_cause(make_env, say, tmp_path):
    env = make_env(clip=tmp_path / "gone.mp4")
    _, trajectory = roll_out(env, say(LOOK))
    assert trajectory.stop_reason == StopReason.VIDEO_ERROR
    assert "gone.mp4" in trajectory.note and "\n" not in trajectory.note
    failure = trajectory.clip_failure
    assert (failure.window, failure.error) == (trajectory.turns[0].call.span, "VideoOpenError")
    assert failure.path.endswith("gone.mp4") and failure.problem and failure.remedy
    assert trajectory.turns[0].call.num_frames == 8  # what the policy did is kept


def test_every_token_keeps_its_log_prob_and_its_version(make_env, say):
    *_, trajectory = roll_out(make_env(), say(LOOK), say(ANSWER))
    for turn in trajectory.turns:
        assert len(turn.completion.logprobs) == len(turn.completion.token_ids)
        assert turn.completion.policy_version == 3


def test_an_environment_runs_one_episode(make_env, say):
    env = make_env()
    roll_out(env, say(ANSWER))
    with pytest.raises(RuntimeError, match="one episode"):
        env.reset()
    with pytest.raises(EngineContractError, match="not requested"):
        env.step(say(ANSWER))


def broken_completions(processor):
    ids = processor.ids
    return {
        "no token": Completion((), (), "length", 0),
        "1 log-probs for 2": Completion((5, ids.im_end), (0.0,), "stop", 0),
        "257 tokens where 256": Completion((5,) * 257, (0.0,) * 257, "length", 0),
        "after a stop token": Completion((ids.fps_close, 5), (0.0, 0.0), "length", 0),
        "a vision token": Completion((ids.video_pad, ids.im_end), (0.0, 0.0), "stop", 0),
        "finish reason 'abort'": Completion((5,), (0.0,), "abort", 0),
    }


def test_what_no_engine_may_return_is_a_loud_error(make_env, processor):
    for fault, completion in broken_completions(processor).items():
        env = make_env()
        env.reset()
        with pytest.raises(EngineContractError, match=fault):
            env.step(completion)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_whatever_the_policy_writes_the_history_holds_and_the_episode_ends(processor, reader, clip, initial, data):
    ids = processor.ids
    allowed = sorted(set(np.flatnonzero(processor.allowed_token_mask()).tolist()) - {ids.im_end, ids.fps_close})
    words = st.sampled_from(allowed) | st.sampled_from([ids.span_open, ids.span_close, ids.fps_open])
    phrases = st.lists(words, max_size=20) | st.sampled_from([list(encode_reply(LOOK[:-6], processor))])
    env = RetrievalEnv(
        make_task(clip), initial, processor=processor, reader=reader, rules=RULES, budget=TokenBudget(120, 400)
    )
    given, turns = env.reset(), 0
    while not isinstance(given, Trajectory):
        end = data.draw(st.sampled_from([ids.im_end, ids.fps_close, ids.fps_close]))
        written = (*data.draw(phrases), end)[: env.new_tokens_left]
        finish_reason = "stop" if written[-1] == end else "length"
        before = env.token_ids
        given, turns = env.step(Completion(written, (0.0,) * len(written), finish_reason, 0)), turns + 1
        assert env.token_ids[: len(before) + len(written)] == (*before, *written)
    assert turns == len(given.turns) <= 120
    assert len(trajectory_tokens(given)) <= 400
    assert env.token_ids[: len(trajectory_tokens(given))] == trajectory_tokens(given)
    videos = trajectory_videos(initial.frames, given.turns)
    assert trajectory_tokens(given).count(ids.video_pad) == sum(map(processor.visual_tokens, videos))
    assert len(videos) <= 1 + RULES.max_calls
