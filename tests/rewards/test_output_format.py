"""All tags, once each, in order, properly nested; calls inside the thought."""

import pytest

from rewards.output_format import output_format

LOOK = "<span>1 - 2</span><fps>3</fps>"


@pytest.mark.parametrize(
    "text",
    [
        "<think>T</think><answer>B</answer>",
        "<think></think>\n<answer>B</answer>\n",
        f"<think>T {LOOK}<video> T</think><answer>B</answer>",
        f"<think>{LOOK}a{LOOK}b</think> <answer>B</answer><|im_end|>",
        "<think><span>9 - 2</span> <fps>x</fps></think><answer>B</answer>",  # malformed: its own reward knows
    ],
)
def test_well_formed(task, trajectory_of, text):
    assert output_format(task(), trajectory_of(text)) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "B",
        "<answer>B</answer>",
        "<think>T</think>",
        "<think>T</think><answer> </answer>",  # empty
        "<answer>B</answer><think>T</think>",  # order
        "<think>T<answer>B</answer></think>",  # nesting
        "<think>T</think><think>T</think><answer>B</answer>",  # uniqueness
        "<think>T</think><answer>A</answer><answer>B</answer>",
        "<think>T</think>so<answer>B</answer>",  # text between
        "Well <think>T</think><answer>B</answer>",
        "<think>T</think><answer>B</answer> I hope",
        f"<think>T</think>{LOOK}<answer>B</answer>",  # call outside the thought
        f"<think>T</think><answer>{LOOK}</answer>",
        "<think><fps>3</fps><span>1 - 2</span></think><answer>B</answer>",
        "<think><span>1 - 2</span>at<fps>3</fps></think><answer>B</answer>",
        "<think><span>1 - 2<fps>3</fps></span></think><answer>B</answer>",
        "<think><fps>3</fps></think><answer>B</answer>",
        "<think><span>1 - 2</span></think><answer>B</answer>",
    ],
)
def test_badly_formed(task, trajectory_of, text):
    assert output_format(task(), trajectory_of(text)) == 0.0


def test_a_call_can_be_required(task, trajectory_of):
    assert output_format(task(), trajectory_of(), require_call=True) == 0.0
    assert output_format(task(), trajectory_of(f"<think>{LOOK}</think><answer>B</answer>"), require_call=True) == 1.0
