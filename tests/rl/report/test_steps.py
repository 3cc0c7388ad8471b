"""Records become a small index for lists and details for who looks closer; what is no record is left out and listed."""

import gzip
import json
from pathlib import Path

import pytest

from rl.report.run_files import Broken, StepFile
from rl.report.steps import compact

FILE = StepFile("train", 12, Path("step_000012.jsonl"))


def record(sibling=0, task="t:1", **changes):
    turn = {
        "segment": "sampling",
        "context_tokens": 20,
        "sampled_tokens": 2,
        "mean_logprob": -0.5,
        "policy_version": 3,
        "call": {
            "asked_s": [1.0, 9.0],
            "asked_fps": 4.0,
            "granted_s": [1.0, 8.0],
            "granted_fps": 2.0,
            "frames": 2,
            "clamped": ["end", "fps"],
        },
        "frames": None,
        "tokens": ["<fps>", "4"],
        "logprobs": [-0.25, -0.75],
        "learner_logprobs": [-0.2501, -0.75],
        "advantage": 1.5,
    }
    answer = {
        "segment": "reasoning",
        "context_tokens": 9,
        "sampled_tokens": 1,
        "mean_logprob": 0.0,
        "policy_version": 3,
        "call": None,
        "frames": {"timestamps_s": [1.083, 4.5], "scene_lengths": [2], "height": 56, "width": 112},
    }
    whole = {
        "task": {"id": task, "video": "/v.mp4", "question": "Q?", "answer": "B", "evidence_s": [2.0, 3.0]},
        "group": 0,
        "sibling": sibling,
        "duration_s": 8.0,
        "coarse_frames": {"timestamps_s": [0.0, 4.0], "scene_lengths": [1, 1], "height": 56, "width": 112},
        "text": "<answer>A</answer> no: <answer> B </answer>",
        "stop": "answered",
        "note": "",
        "turns": [turn, answer],
        "rewards": {"sampling": 0.5, "reasoning": 1.0, "terms": {"window": 0.5}},
    }
    return whole | changes


def compacted(*records):
    return compact(FILE, ((line, number) for number, line in enumerate(records, start=1)))


def details(step, which="full"):
    return json.loads(gzip.decompress(getattr(step, which)))


def test_the_index_says_what_lists_need():
    ((group,), _) = (compacted(record()).index["groups"], None)
    assert (group["task"], group["question"], group["evidence"], group["duration_s"]) == ("t:1", "Q?", [2.0, 3.0], 8.0)
    (sibling,) = group["siblings"]
    assert (sibling["sampling"], sibling["reasoning"], sibling["stop"]) == (0.5, 1.0, "answered")
    assert sibling["calls"] == [[1.0, 8.0, 2.0]]  # as granted
    assert sibling["answer"] == "B"  # the last one


def test_log_probs_travel_as_whole_hundred_thousandths_and_the_learner_as_a_difference():
    turn = details(compacted(record()))[0]["siblings"][0]["turns"][0]
    assert turn["engine"] == [-25000, -75000]
    assert turn["gap"] == [10, 0]  # engine - learner: -0.25 - -0.2501 = 0.0001 nat
    assert (turn["tokens"], turn["advantage"]) == (["<fps>", "4"], 1.5)


def test_without_numbers_per_token_the_text_is_kept():
    turn = details(compacted(record()), "plain")[0]["siblings"][0]["turns"][0]
    assert turn["written"] == "<fps>4" and turn["advantage"] == 1.5
    assert not {"tokens", "engine", "gap"} & turn.keys()


def test_what_an_older_run_did_not_record_is_absent_rather_than_zero():
    old = record()
    for name in ("duration_s", "group"):
        del old[name]
    for name in ("tokens", "logprobs", "learner_logprobs", "advantage"):
        del old["turns"][0][name]
    (group,) = details(compacted(old))
    assert group["duration_s"] is None
    assert not {"tokens", "engine", "gap", "advantage", "written"} & group["siblings"][0]["turns"][0].keys()


def test_the_frames_a_trajectory_needs_are_its_coarse_and_retrieved_ones():
    (need,) = compacted(record()).needs
    assert need.video == "/v.mp4" and need.times_ms == {0, 4000, 1083, 4500}


def test_siblings_are_grouped_by_their_group_even_where_a_task_is_rolled_out_twice():
    lines = [record(0, group=0), record(1, group=0), record(0, group=1), record(1, group=1)]
    assert [len(group["siblings"]) for group in compacted(*lines).index["groups"]] == [2, 2]


def test_in_records_without_groups_a_new_one_starts_where_siblings_start_again():
    lines = [record(0), record(1), record(0), record(0, task="t:2")]
    for each in lines:
        del each["group"]
    assert [len(group["siblings"]) for group in compacted(*lines).index["groups"]] == [2, 1, 1]


def test_a_failed_reward_a_malformed_call_and_an_unreadable_video_are_shown_as_such():
    failed = record(rewards={"failed": {"term": "answer", "cause": "timeout", "detail": "30 s"}})
    failed["turns"][0]["call"] = {"malformed": "reversed"}
    lost = record(
        1, coarse_frames=None, turns=[], stop="video_error", note="v.mp4: is empty", rewards=failed["rewards"]
    )
    first, second = compacted(failed, lost).index["groups"][0]["siblings"]
    assert (first["failed"], first["calls"], first["sampling"]) == ("timeout", ["malformed"], None)
    assert (second["stop"], second["calls"]) == ("video_error", [])


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"task": 1},
        record(turns=3),
        record(rewards=None),
        record(coarse_frames={"timestamps_s": [0.0], "scene_lengths": [2]}),  # scenes of two frames, one frame
        record(coarse_frames={"timestamps_s": ["soon"]}),
        record(sibling="x"),
    ],
)
def test_what_is_not_a_record_is_left_out_and_listed(broken):
    step = compacted(record(), broken, Broken("trajectories/step_000012.jsonl:9", "is not JSON"))
    assert len(step.needs) == 1 and len(step.index["groups"]) == 1
    assert [each.place for each in step.broken] == [f"trajectories/step_000012.jsonl:{line}" for line in (2, 9)]


def test_a_call_of_another_tool_keeps_its_name_its_moment_and_its_box():
    zoomed, at = record(), {"granted_s": [4.5, 4.5], "clamped": []}
    zoomed["turns"][0]["call"] = {"tool": "zoom", "arguments": {}, "box": [0, 100, 500, 600.5], **at}
    told, refused = record(1), record(2)
    told["turns"][0]["call"] = {"tool": "length", "arguments": {"unit": "s"}, "granted_s": None, "box": None}
    refused["turns"][0]["call"] = {"tool": "zoom", "refused": "the moment lies outside the video"}
    step = compacted(zoomed, told, refused)
    (group,) = step.index["groups"]
    assert [sibling["calls"] for sibling in group["siblings"]] == [
        [[4.5, 4.5, None, "zoom"]],
        [[None, None, None, "length"]],
        ["refused"],
    ]
    calls = [sibling["turns"][0]["call"] for sibling in details(step)[0]["siblings"]]
    assert calls[0] == {
        "tool": "zoom",
        "granted": [4.5, 4.5],
        "box": [0.0, 100.0, 500.0, 600.5],
        "asked_box": None,
        "clamped": [],
    }
    assert (calls[1]["tool"], calls[1]["granted"]) == ("length", None)
    assert calls[2] == {"tool": "zoom", "refused": "the moment lies outside the video"}


@pytest.mark.parametrize("box", [[1, 2, 3], [1, 2, 3, "x"], 7])
def test_a_record_with_a_box_that_is_none_is_left_out(box):
    odd = record()
    odd["turns"][0]["call"] = {"tool": "zoom", "granted_s": [4.5, 4.5], "box": box}
    assert len(compacted(odd).broken) == 1


def test_log_probs_that_do_not_match_the_tokens_are_refused():
    wrong = record()
    wrong["turns"][0]["logprobs"] = [-0.25]
    (broken,) = compacted(wrong).broken
    assert "1 logprobs for 2 tokens" in broken.reason


def test_the_same_records_give_the_same_bytes():
    assert compacted(record()).full == compacted(record()).full
