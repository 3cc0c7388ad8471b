"""A policy that finds its thought open, as a Thinking checkpoint's does: prompt, episode, trace, reward, reading."""

import asyncio

import pytest

from envs.benchmarks.prediction import prediction_of
from envs.data.formats import RetrievalTrace
from envs.data.rows import UnusableRow
from envs.data.traces import trace_to_trajectory
from envs.initial_observation import CoarseFrameRules
from envs.prompts import encode_reply
from envs.rollout import EpisodeContext, run_group
from envs.tools.rules import RetrievalRules
from rewards.output_format import output_format
from rl.learner.sft import supervised_sample
from rl.trajectory import Completion, Sampling, TrajectoryGroup
from tests.envs.setting import make_processor, make_reader, make_task, write_clip

TEMPLATE = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
LOOK, ANSWER = "Look closer.<span>2 - 4</span><fps>4</fps>", "I see red.</think><answer>B</answer>"
TEXT = f"<think>\n{LOOK}<video>{ANSWER}"


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    rules = RetrievalRules(max_calls=1, max_pixels=3136)
    with make_reader() as reader:
        yield EpisodeContext(make_processor(folder), reader, CoarseFrameRules(max_pixels=3136), rules, 1024)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return make_task(write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4"))


def roll_out(context, task, *replies):
    """A trajectory of a policy that writes these replies, whatever it is shown."""
    written = iter(replies)

    async def generate(request):
        token_ids = encode_reply(next(written), context.processor)
        ends = token_ids[-1] == context.processor.ids.fps_close
        token_ids += () if ends else (context.processor.ids.im_end,)
        return Completion(token_ids, (-1.0,) * len(token_ids), "stop", 0)

    return asyncio.run(
        run_group(
            task,
            group_size=1,
            sampling=Sampling(256, 1.0),
            generate=generate,
            episode_context=context,
            seed=0,
            step=0,
        )
    ).trajectories_G[0]


def test_the_prompt_ends_in_the_open_thought_and_the_text_begins_with_it(context, task):
    trajectory = roll_out(context, task, LOOK, ANSWER)
    prompt, ids = trajectory.turns[0].context_token_ids, context.processor.ids
    assert context.processor.decode(prompt).endswith("<|im_end|>\n<|im_start|>assistant\n<think>\n")
    assert prompt.count(ids.think_open) == 1 and prompt[-2] == ids.think_open
    assert trajectory.answer_text == TEXT


def test_the_thought_that_the_prompt_opened_counts_as_opened(context, task):
    assert output_format(task, roll_out(context, task, LOOK, ANSWER), require_call=True) == 1.0
    assert output_format(task, roll_out(context, task, "<think>" + LOOK, ANSWER)) == 0.0  # opened twice
    assert output_format(task, roll_out(context, task, "It is red.<answer>B</answer>")) == 0.0  # never closed


def test_an_evaluation_reads_what_stands_behind_the_thought(context, task):
    assert prediction_of(roll_out(context, task, LOOK, ANSWER)).answer == "B"
    untagged = prediction_of(roll_out(context, task, "Is it A? No.</think>\n\n**B**"))
    assert (untagged.answer, untagged.said) == (None, "**B**")
    assert prediction_of(roll_out(context, task, "It may be A, or")).said == ""  # still thinking


def test_a_trace_teaches_what_comes_behind_the_open_thought(context, task):
    replies = (f"<think>\n{LOOK}", ANSWER)
    trajectory, frames = trace_to_trajectory(RetrievalTrace(task, replies), context)
    assert trajectory.answer_text == TEXT
    sample = supervised_sample(TrajectoryGroup(task, (trajectory,), frames))
    learned = [token for token, is_learned in zip(sample.token_ids, sample.loss_mask, strict=True) if is_learned]
    assert context.processor.decode(learned) == f"{LOOK}{ANSWER}<|im_end|>"
    assert sample.token_ids.count(context.processor.ids.think_open) == 1  # in the prompt, not learned


def test_a_trace_that_never_closes_the_thought_is_left_out(context, task):
    with pytest.raises(UnusableRow, match="no </think>: this policy's prompts open a thought"):
        trace_to_trajectory(RetrievalTrace(task, (LOOK, "<answer>B</answer>")), context)
