"""What holds of any tool, built in or a stranger's: of two of ours and of one that nothing but its file knows."""

import json
from dataclasses import replace

import pytest

from envs.env import Observation
from envs.tools.rules import RetrievalRules
from envs.tools.users import load_tools
from rl.algorithm.segments import flatten
from rl.checkpoint.sampled_steps import read_sampled_steps, write_sampled_steps
from rl.tracking.records import call_record
from rl.trajectory import (
    GrantedCall,
    MalformedCall,
    RefusedCall,
    SampledStep,
    ScoredGroup,
    Segment,
    SegmentRewards,
    StopReason,
    Trajectory,
    TrajectoryGroup,
)
from tests.envs.setting import make_task
from tests.envs.tools.setting import RULES

CALLS = {  # by tool: granted, malformed, refused
    "span_fps": ("<span>2 - 4</span><fps>2</fps>", "<span>2 4</span><fps>2</fps>", "<span>4 - 2</span><fps>2</fps>"),
    "zoom": (
        "<zoom>5</zoom><box>0 0 500 500</box>",
        "<zoom>5</zoom><box>0 0 500</box>",
        "<zoom>9</zoom><box>0 0 500 500</box>",
    ),
    "length": ("<length>s</length>", "<length>7</length>", "<length>h</length>"),
}
ANSWER = "Red.</think><answer>B</answer><|im_end|>"
every_tool = pytest.mark.parametrize("name", CALLS)


def tool_of(name):
    return next(tool for tool in load_tools(RULES) if tool.name == name)


@every_tool
def test_a_granted_call_is_answered_with_no_more_tokens_than_announced(episodes, name):
    env = episodes.env()
    seen = env.step(episodes.said(f"<think>{CALLS[name][0]}"))
    call = env.step(episodes.said(ANSWER)).calls[0]
    assert isinstance(call, GrantedCall) and call.tool == name
    assert 0 < len(seen.token_ids) <= tool_of(name).tokens(call, env._clip)


@every_tool
def test_what_is_inserted_is_context_and_the_turn_before_it_sampling(episodes, name):
    env = episodes.env()
    seen = env.step(episodes.said(f"<think>{CALLS[name][0]}"))
    trajectory = env.step(episodes.said(ANSWER))
    assert [turn.segment for turn in trajectory.turns] == [Segment.SAMPLING, Segment.REASONING]
    assert trajectory.turns[1].context_token_ids == seen.token_ids
    flat = flatten(trajectory, None)
    assert flat.token_ids == env.token_ids
    inserted = [
        id
        for id, turn, whose in zip(flat.token_ids, flat.turn_ids, flat.segment_ids, strict=True)
        if turn == 1 and whose == Segment.CONTEXT
    ]
    assert tuple(inserted) == seen.token_ids


@every_tool
@pytest.mark.parametrize(("which", "kind"), [(1, MalformedCall), (2, RefusedCall)])
def test_a_call_that_is_not_granted_is_answered_with_its_reason_and_goes_on(episodes, name, which, kind):
    env = episodes.env()
    seen = env.step(episodes.said(f"<think>{CALLS[name][which]}"))
    assert isinstance(seen, Observation) and seen.frames is None
    trajectory = env.step(episodes.said(ANSWER))
    (call,) = trajectory.calls
    assert isinstance(call, kind) and call.tool == name and trajectory.stop_reason is StopReason.ANSWERED
    assert episodes.processor.decode(seen.token_ids) == f"\n[{tool_of(name).nothing}: {call.reason}]\n"


@every_tool
def test_without_room_it_is_refused_and_the_answer_keeps_its_room(episodes, name):
    env = episodes.env(max_new_tokens=100)
    said = episodes.said(f"<think>{CALLS[name][0]}")
    env = episodes.env(max_new_tokens=100, max_model_len=len(env.token_ids) + 100 + 3)
    env.step(said)
    assert isinstance(env._turns[0].call, RefusedCall) and env._turns[0].call.tool == name
    assert env._turns[0].call.reason.startswith("no room is left for")


@every_tool
def test_calls_of_all_tools_count_against_one_limit(episodes, name):
    env = episodes.env(replace(RULES, max_calls=1))
    env.step(episodes.said("<think><length>s</length>"))
    env.step(episodes.said(CALLS[name][0]))
    assert env._turns[1].call == RefusedCall("the limit of 1 per answer is reached", name)


@every_tool
def test_a_call_is_equal_after_a_checkpoint_and_readable_in_a_record(episodes, name, tmp_path):
    env = episodes.env()
    for text in CALLS[name]:
        env.step(episodes.said(text))
    trajectory = env.step(episodes.said(ANSWER))
    task = make_task(episodes.clip)
    step = SampledStep((ScoredGroup(TrajectoryGroup(task, (trajectory,), None), (SegmentRewards(1.0, 1.0, {}),)),))
    write_sampled_steps(tmp_path, {3: step})
    (group,) = read_sampled_steps(tmp_path, lambda _: task)[3].groups
    assert group.group.trajectories_G[0].calls == trajectory.calls
    for call in trajectory.calls:
        record = json.loads(json.dumps(call_record(call)))
        assert record.get("tool", "span_fps") == name


@every_tool
def test_a_builtin_tool_that_is_not_enabled_is_refused_by_name(episodes, name):
    others = tuple(tool for tool in RULES.tools if tool_of(name).name not in tool and not tool.endswith("Length"))
    if name == "length":
        pytest.skip("nobody knows a stranger's tool that is not named")
    env = episodes.env(replace(RULES, tools=others))
    seen = env.step(episodes.said(f"<think>{CALLS[name][0]}"))
    assert f"the tool {name} is not enabled" in episodes.processor.decode(seen.token_ids)


def test_calls_of_several_tools_are_turns_of_one_trajectory(episodes):
    env = episodes.env()
    for name in CALLS:
        env.step(episodes.said(CALLS[name][0]))
    trajectory = env.step(episodes.said(ANSWER))
    assert isinstance(trajectory, Trajectory)
    assert [call.tool for call in trajectory.granted_calls] == list(CALLS)
    assert [turn.frames is not None for turn in trajectory.turns] == [False, True, True, False]
    shown = "<video>".join([CALLS["span_fps"][0], CALLS["zoom"][0], CALLS["length"][0]])
    assert trajectory.answer_text == f"{shown}\nThe clip lasts 8 s.\n{ANSWER.removesuffix('<|im_end|>')}"


def test_the_rules_of_a_run_name_the_tools_that_its_configuration_knows():
    from envs.tools.toolbox import BUILTIN
    from rl.config.data import BUILTIN_TOOLS

    assert tuple(BUILTIN) == BUILTIN_TOOLS and RetrievalRules().tools == ("span_fps",)
