"""Supervised traces take the same path as rollouts."""

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from envs.data.dataset import load_traces
from envs.data.formats import RetrievalTrace
from envs.data.rows import UnusableRow
from envs.data.traces import Clip, trace_to_trajectory, traces_from_evidence
from envs.initial_observation import CoarseFrameRules
from envs.rollout import EpisodeContext
from envs.tools.rules import RetrievalRules
from envs.tools.span_fps import parse_call
from rl.trajectory import (
    AnswerKind,
    RetrievalCall,
    Segment,
    StopReason,
    TimeSpan,
    VideoTask,
    trajectory_tokens,
    trajectory_videos,
)
from tests.envs.setting import make_processor, make_reader, make_task, write_clip

REPLIES = ("<think>Look.<span>2 - 4</span><fps>4</fps>", "\nRed.</think><answer>B</answer>")
COARSE = CoarseFrameRules(fps=1.0, min_frames=4, max_frames=8, max_pixels=3136)


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return make_processor(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


@pytest.fixture
def convert(processor, clip):
    def run(replies=REPLIES, *, clip=clip, max_model_len=1024, max_calls=1):
        rules = RetrievalRules(max_calls=max_calls, max_pixels=3136)
        with make_reader() as reader:
            around = EpisodeContext(processor, reader, COARSE, rules, max_model_len)
            return trace_to_trajectory(RetrievalTrace(make_task(clip), replies), around)

    return run


@pytest.mark.thorough
def test_a_trace_has_the_form_of_a_rollout(convert, processor):
    trajectory, initial = convert()
    look, answer = trajectory.turns
    assert (look.segment, answer.segment) == (Segment.SAMPLING, Segment.REASONING)
    assert trajectory.stop_reason == StopReason.ANSWERED
    assert trajectory.answer_text == f"{REPLIES[0]}<video>{REPLIES[1]}"
    assert answer.context_token_ids == tuple(processor.video_block(answer.frames))  # context: masked
    assert answer.completion.token_ids[-1] == processor.ids.im_end
    assert set(look.completion.logprobs) == {0.0}
    videos = trajectory_videos(initial, trajectory.turns)
    placeholders = trajectory_tokens(trajectory).count(processor.ids.video_pad)
    assert placeholders == sum(map(processor.visual_tokens, videos))


def test_a_trace_without_a_call_is_an_answer(convert):
    trajectory, _ = convert(("<think>Red.</think><answer>B</answer>",))
    assert [turn.segment for turn in trajectory.turns] == [Segment.REASONING]


def test_a_marker_in_a_trace_stays_text(convert, processor):
    trajectory, _ = convert((REPLIES[0], "\n<|video_pad|><|im_end|> Red.</think><answer>B</answer>"))
    written = trajectory.turns[1].completion.token_ids
    assert processor.ids.video_pad not in written
    assert written.count(processor.ids.im_end) == 1


def test_a_trace_the_environment_would_not_follow_is_refused(convert, tmp_path):
    with pytest.raises(UnusableRow, match="the call is refused: the time span lies outside"):
        convert((REPLIES[0].replace("2 - 4", "20 - 40"), REPLIES[1]))
    with pytest.raises(UnusableRow, match="retrieval is turned off"):
        convert(max_calls=0)
    with pytest.raises(UnusableRow, match=r"t: .*gone.mp4"):
        convert(clip=tmp_path / "gone.mp4")


def test_a_trace_that_does_not_fit_the_context_is_refused(convert):
    trajectory, _ = convert(("<think>Red.</think><answer>B</answer>",))
    initial = len(trajectory.turns[0].context_token_ids)
    for max_model_len in (10, initial, initial + 1, initial + 13, initial + 25):
        with pytest.raises(UnusableRow, match="t: "):
            convert(max_model_len=max_model_len)


@pytest.mark.real_data
def test_the_published_trace_plays_on_its_real_clip(processor, real_data_dir):
    (trace,) = load_traces("dm_cot", real_data_dir / "dynframe_sample" / "dm_cot.json").traces
    with make_reader() as reader:
        rules = RetrievalRules(max_pixels=28 * 28 * 12)
        around = EpisodeContext(processor, reader, COARSE, rules, max_model_len=4096)
        trajectory, initial = trace_to_trajectory(trace, around)
    (call,) = trajectory.calls
    assert (call.asked.start_s, call.asked.end_s, call.fps) == (56.47, 61.72, 3.0)
    shown_s_T = trajectory.turns[1].frames.timestamps_s_T
    assert call.clamped == ("end",)  # the annotation reaches .8 s beyond the last frame
    assert len(shown_s_T) == call.num_frames == 13
    assert 56.3 < shown_s_T[0] <= 56.47 and shown_s_T[-1] < call.span.end_s
    assert initial.num_frames == 8


def test_traces_made_from_evidence_are_roughly_right_and_playable(convert, clip):
    task = replace(make_task(clip), evidence_span=TimeSpan(2.0, 4.0), evidence_fps=4.0)
    unannotated = replace(task, evidence_span=None)
    with make_reader() as reader:
        index = reader.describe(str(clip))
    made = {"window_jitter_s": 0.5, "fps_jitter": 1.0, "per_task": 8, "seed": 0}
    made["clip_of"] = lambda path: Clip(index.duration_s, index.native_fps)
    traces = traces_from_evidence([task, unannotated], **made)
    assert len(traces) == 8 and {trace.task.task_id for trace in traces} == {task.task_id}
    calls = [convert(trace.replies)[0].calls[0] for trace in traces]
    assert all(abs(call.asked.start_s - 2) <= 0.55 and abs(call.asked.end_s - 4) <= 0.55 for call in calls)
    assert len({(call.asked, call.asked_fps) for call in calls}) > 4  # jittered: something is left to learn
    assert traces == traces_from_evidence([task, unannotated], **made)


@given(
    duration_s=st.floats(0.1, 40),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    jitter_s=st.floats(0, 60),
    native_fps=st.sampled_from([0.0, 0.5, 1.0, 7.3, 23.976, 30.0]),
    seed=st.integers(0, 2**32),
)
@example(duration_s=0.9999999999999999, shares=(0.0, 0.0), jitter_s=0.0, native_fps=0.0, seed=0)
def test_a_jittered_look_asks_for_nothing_that_the_clip_has_not(duration_s, shares, jitter_s, native_fps, seed):
    start_s, end_s = sorted(share * duration_s for share in shares)
    task = VideoTask("t", "clip.mp4", "?", "B", AnswerKind.LETTER, TimeSpan(start_s, end_s), evidence_fps=30.0)
    (trace,) = traces_from_evidence(
        [task],
        clip_of=lambda path: Clip(duration_s, native_fps),
        window_jitter_s=jitter_s,
        fps_jitter=2.0,
        per_task=1,
        seed=seed,
    )
    rules = RetrievalRules(max_fps=100.0, max_frames=100_000)
    call = parse_call(trace.replies[0], duration_s=duration_s, native_fps=native_fps, rules=rules)
    assert isinstance(call, RetrievalCall), call
    assert call.clamped == () and 0 <= call.span.start_s < call.span.end_s <= duration_s + 1e-6


@pytest.mark.parametrize(
    ("duration_s", "evidence", "look"),
    [
        (7.968, (6.0, 7.968), "6.00 - 7.96"),  # the end as it is: 8.0 is not there
        (0.64, (0.0, 0.64), "0.00 - 0.64"),
        (1.0, (0.2, 0.4), "0.00 - 1.00"),  # a second at least, where there is one
        (60.0, (59.9, 60.0), "59.00 - 60.00"),
        (60.0, (12.34, 15.66), "12.30 - 15.70"),
    ],
)
def test_times_of_a_look_are_tenths_but_the_end_of_the_clip_is_its_own(duration_s, evidence, look):
    task = VideoTask("t", "clip.mp4", "?", "B", AnswerKind.LETTER, TimeSpan(*evidence), evidence_fps=4.0)
    rules = {"window_jitter_s": 0.0, "fps_jitter": 0.0, "per_task": 1, "seed": 0}
    (trace,) = traces_from_evidence([task], clip_of=lambda path: Clip(duration_s, 25.0), **rules)
    assert f"<span>{look}</span><fps>4</fps>" in trace.replies[0]
