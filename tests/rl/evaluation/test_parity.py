"""Parity is arithmetic on log-probs, and its negative controls change only what they name."""

import asyncio
import math

import numpy as np
import pytest

from envs.tools.rules import RetrievalRules
from envs.tools.toolbox import builtin_toolbox, further_tags
from envs.tools.zoom import Zoom
from rl.config.policy import ScenesConfig, TinyPolicyConfig
from rl.evaluation.forced_calls import FPS, NOT_DRAWN, OWN_TOKENS, WINDOW_S, CallForcing
from rl.evaluation.parity import Deviation, ParityGates, ParityReport, compare, learner_logprobs, measure_parity
from rl.evaluation.parity_cases import (
    CONTROLS,
    ParityCase,
    with_permuted_scenes,
    with_shifted_pixels,
    with_wrong_durations,
)
from rl.policy.model import load_policy
from rl.policy.processor import Processor
from rl.policy.tiny import build_tiny_policy
from rl.trajectory import (
    Completion,
    GenerateRequest,
    Sampling,
    Segment,
    StopReason,
    Trajectory,
    TrajectoryGroup,
    Turn,
    VideoTask,
)

PROMPT, SAMPLING, REASONING = Segment.CONTEXT, Segment.SAMPLING, Segment.REASONING
SMALL = TinyPolicyConfig(family="qwen3_vl", hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1, vision_layers=3)
LOUDER = 12.0  # the tiny policy's logits are quiet: nearly uniform, which would prove little
SCENES = ScenesConfig(budget="none")


@pytest.fixture(scope="module")
def policy_dir(tmp_path_factory):
    return build_tiny_policy(SMALL, SCENES, tmp_path_factory.mktemp("policy"), seed=0)


@pytest.fixture(scope="module")
def processor(policy_dir):
    return Processor.from_pretrained(policy_dir, SCENES)


@pytest.fixture
def zooming(tmp_path):
    """Of a policy that can write zooms, too."""
    folder = build_tiny_policy(SMALL, SCENES, tmp_path, seed=0, tool_tags=further_tags([Zoom(RetrievalRules())]))
    return Processor.from_pretrained(folder, SCENES)


@pytest.fixture(scope="module")
def model(policy_dir):
    model = load_policy(policy_dir, SCENES)
    model.lm_head.weight.data *= LOUDER
    return model


@pytest.fixture
def case(processor) -> ParityCase:
    """A prompt with a clip of three scenes, then two tokens that call and two that answer."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    video = processor.make_frames(pixels[[0, 1, 1, 2]], [0.0, 1.0, 2.0, 3.0])
    prompt = [*processor.encode("Look: "), *processor.video_block(video), *processor.encode("Answer:")]
    segments = (*[PROMPT] * len(prompt), SAMPLING, SAMPLING, REASONING, REASONING)
    drawn = tuple(segment != PROMPT for segment in segments)
    return ParityCase((*prompt, 40, 41, 42, 43), segments, (0.0,) * len(segments), drawn, (video,))


def test_differences_are_reported_per_segment():
    segments = (PROMPT, PROMPT, SAMPLING, SAMPLING, REASONING)
    case = ParityCase((1, 2, 3, 4, 5), segments, (0, -1, -2, -3, -4), (False,) * 5, ())
    learner = np.array([math.nan, -1.5, -2.0, -3.25, -3.0])

    report = compare([case, case], [learner, learner])

    assert report["prompt"] == Deviation(0.5, 0.5, 2, 0.0)
    assert report["sampling"] == Deviation(0.25, 0.125, 4, 0.5)  # the engine's -2 and -3
    assert report["reasoning"] == Deviation(1.0, 1.0, 2, 0.0)


def test_segment_without_tokens_is_not_reported():
    case = ParityCase((1, 2), (PROMPT, REASONING), (0, -1), (False, True), ())

    assert set(compare([case], [np.array([math.nan, -1.0])])) == {"reasoning"}


@pytest.mark.parametrize(
    ("largest", "mean", "control", "complaint"),
    [
        (5e-6, 1e-6, 0.5, None),
        (2e-4, 1e-6, 0.5, "reasoning: max 2.00e-04"),
        (9e-5, 4e-5, 0.5, "reasoning: mean 4.00e-05"),
        (math.nan, math.nan, 0.5, "reasoning"),
        (5e-6, 1e-6, 4e-4, "control shifted_pixels"),
        (5e-6, 1e-6, math.nan, "control shifted_pixels"),
    ],
)
def test_gate_wants_small_differences_and_large_controls(largest, mean, control, complaint):
    report = ParityReport({"reasoning": Deviation(largest, mean, 10, 2.0)}, {"shifted_pixels": control}, 2.0)

    failures = report.failures(ParityGates(max_nat=1e-4, mean_nat=2e-5))

    assert bool(failures) == bool(complaint)
    assert complaint is None or complaint in failures[0]


@pytest.mark.parametrize(("spread", "is_warned"), [(0.2, True), (0.99, True), (1.0, False), (math.nan, True)])
def test_a_nearly_uniform_policy_is_warned_of(spread, is_warned):
    report = ParityReport({"prompt": Deviation(2e-6, 1e-6, 3, spread)}, {"shifted_pixels": 0.5}, spread)

    assert [("nearly uniform" in warning) for warning in report.warnings()] == [True] * is_warned


def test_report_is_one_flat_record():
    report = ParityReport({"prompt": Deviation(2e-6, 1e-6, 3, 1.5)}, {"shifted_pixels": 0.5}, 1.25)

    assert report.as_dict() == {
        "prompt": {"max": 2e-6, "mean": 1e-6, "tokens": 3, "spread": 1.5},
        "controls": {"shifted_pixels": 0.5},
        "spread": 1.25,
        "warnings": [],
    }


def test_wrong_durations_change_the_clock_and_the_written_times_only(processor, case):
    fooled = with_wrong_durations(processor, case)

    assert processor.decode(fooled.token_ids).count("<4.5 seconds>") == 1
    assert processor.geometry.clock(fooled.videos[0]).times_s_K == (0.0, 4.5, 9.0)
    assert fooled.token_ids[-4:] == case.token_ids[-4:]
    assert fooled.segment_ids[-5:] == case.segment_ids[-5:]
    assert fooled.drawn[-5:] == case.drawn[-5:]
    assert (
        len({len(column) for column in (fooled.token_ids, fooled.segment_ids, fooled.engine_logprobs, fooled.drawn)})
        == 1
    )


def test_shifted_pixels_move_every_frame_by_a_patch(processor, case):
    (before,), (after,) = case.videos, with_shifted_pixels(processor, case).videos

    assert (after.pixels_THWC[:, :, 16:] == before.pixels_THWC[:, :, :-16]).all()
    assert after.scene_lengths == before.scene_lengths


def test_permuted_scenes_keep_the_clock(processor, case):
    (before,), (after,) = case.videos, with_permuted_scenes(processor, case).videos

    assert (before.scene_lengths, after.scene_lengths) == ((1, 2, 1), (1, 2, 1))
    assert (after.pixels_THWC == before.pixels_THWC[[3, 1, 2, 0]]).all()
    assert processor.geometry.clock(after) == processor.geometry.clock(before)


@pytest.mark.parametrize("name", CONTROLS)
def test_every_control_moves_the_learners_logprobs(name, processor, model, case):
    true, fooled = case, CONTROLS[name](processor, case)

    moved = learner_logprobs(model, processor, fooled, 1.0)[-4:] - learner_logprobs(model, processor, true, 1.0)[-4:]

    assert np.abs(moved).max() > 1e-4


class LearnerAsEngine:
    """Scores with the learner itself: the same policy on both sides."""

    def __init__(self, model, processor):
        self._model, self._processor = model, processor

    def score(self, token_ids, videos):
        case = ParityCase(tuple(token_ids), (PROMPT,) * len(token_ids), (), (False,) * len(token_ids), tuple(videos))
        return np.nan_to_num(learner_logprobs(self._model, self._processor, case, 1.0), nan=-np.inf).tolist()


def measured(processor, model, case, *, forced=()):
    """Parity of the learner with itself, on the case as a trajectory; `forced` of its tokens were not drawn."""
    context, called, answered = case.token_ids[:-4], case.token_ids[-4:-2], case.token_ids[-2:]
    logprobs = learner_logprobs(model, processor, case, 0.7)[-4:].tolist()
    logprobs = [NOT_DRAWN if place in forced else logprob for place, logprob in enumerate(logprobs)]
    turns = (
        Turn(context, Completion(called, tuple(logprobs[:2]), "stop", 0), SAMPLING),
        Turn((), Completion(answered, tuple(logprobs[2:]), "stop", 0), REASONING),
    )
    task = VideoTask("t", "/clip.mp4", "?", "A", "letter")
    group = TrajectoryGroup(task, (Trajectory(turns, StopReason.ANSWERED),), case.videos[0])
    return measure_parity(LearnerAsEngine(model, processor), model, processor, [group], temperature=0.7)


@pytest.mark.parametrize("forced", [(), (1,), (0, 1)], ids=["drawn", "half of it drawn", "not drawn"])
def test_equal_policies_have_no_difference_and_live_controls(processor, model, case, forced):
    """A call that was forced has no behaviour log-probs: both sides score its tokens at temperature 1."""
    report = measured(processor, model, case, forced=forced)

    assert report.failures(ParityGates(1e-6, 1e-6)) == []
    assert report.segments["sampling"].tokens == report.segments["reasoning"].tokens == 2
    assert report.spread >= 1 and report.warnings() == []


def test_an_engine_that_computes_no_number_is_not_compared(processor, model, case):
    turn = Turn(case.token_ids[:-1], Completion(case.token_ids[-1:], (math.nan,), "stop", 0), REASONING)
    task = VideoTask("t", "/clip.mp4", "?", "A", "letter")
    group = TrajectoryGroup(task, (Trajectory((turn,), StopReason.ANSWERED),), case.videos[0])

    with pytest.raises(ValueError, match="task t: the engine gave 1 tokens NaN"):
        measure_parity(LearnerAsEngine(model, processor), model, processor, [group], temperature=1.0)


def test_a_policy_that_never_asks_is_made_to_look_once(processor):
    """Its own tokens stay as they were drawn; siblings look at different windows, all of which lie in the clip."""
    frames = processor.make_frames(np.zeros((9, 64, 64, 3), np.uint8), [float(i) for i in range(9)])
    prompt, ids = tuple(processor.video_block(frames)), processor.ids

    async def never_asks(request):
        own = (40, 41, ids.im_end)
        assert request.sampling.max_new_tokens <= OWN_TOKENS
        return Completion(own, (-1.0, -2.0, -3.0), "stop", 0)

    def ask(seed, *, videos=(frames,), engine=never_asks, left=200):
        sampling = Sampling(left, 1.0, 1.0, 0, (ids.fps_close, ids.im_end), seed)
        forcing = CallForcing(engine, processor, builtin_toolbox(RetrievalRules(), processor))
        return asyncio.run(forcing(GenerateRequest("r", prompt, videos, sampling)))

    first, fourth = ask(0), ask(12)
    assert first.token_ids[:2] == fourth.token_ids[:2] == (40, 41) and first.logprobs[:2] == (-1.0, -2.0)
    assert processor.decode(first.token_ids[2:]) == f"<span>0.00 - {WINDOW_S:.2f}</span><fps>{FPS:g}</fps>"
    assert processor.decode(fourth.token_ids[2:]).startswith("<span>2.00 - 6.00")
    assert first.token_ids[-1] == ids.fps_close and set(first.logprobs[2:]) == {NOT_DRAWN}
    assert ask(0, videos=(frames, frames)).token_ids == (40, 41, ids.im_end)  # it has looked

    async def asks(request):
        return Completion((40, ids.fps_close), (-1.0, -2.0), "stop", 0)

    assert ask(0, engine=asks).token_ids == (40, ids.fps_close)
    assert ask(0, left=10).token_ids == (40, 41, ids.im_end)  # no room for a call


def test_siblings_take_turns_with_the_tools_that_calls_can_be_made_of(zooming):
    frames = zooming.make_frames(np.zeros((8, 64, 64, 3), np.uint8), [float(i) for i in range(8)])
    prompt = tuple(zooming.video_block(frames))

    async def never_asks(request):
        return Completion((40, zooming.ids.im_end), (-1.0, -2.0), "stop", 0)

    def asked(seed, *tools):
        forcing = CallForcing(never_asks, zooming, builtin_toolbox(RetrievalRules(tools=tools), zooming))
        request = GenerateRequest("r", prompt, (frames,), Sampling(200, 1.0, 1.0, 0, (), seed))
        return zooming.decode(asyncio.run(forcing(request)).token_ids[1:])

    assert asked(4, "span_fps", "zoom").startswith("<span>")
    assert asked(12, "span_fps", "zoom") == asked(4, "zoom") == "<zoom>3.5</zoom><box>250 250 750 750</box>"
    with pytest.raises(ValueError, match="span_fps and zoom only"):
        asked(0)


def test_without_scenes_to_permute_parity_is_not_measured(processor, model):
    still = processor.make_frames(np.zeros((2, 64, 64, 3), np.uint8), [0.0, 1.0])
    task = VideoTask("t", "/clip.mp4", "?", "A", "letter")
    ids = (*processor.video_block(still), 40)
    turn = Turn(ids, Completion((41,), (-1.0,), "stop", 0), REASONING)
    group = TrajectoryGroup(task, (Trajectory((turn,), StopReason.ANSWERED),), still)

    with pytest.raises(ValueError, match="two scenes"):
        measure_parity(LearnerAsEngine(model, processor), model, processor, [group], temperature=1.0)
