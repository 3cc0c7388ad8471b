"""Metrics: declared names only, means over what there is, failures counted and never averaged in."""

import json
import math
import shutil
from dataclasses import replace

import pytest

from rl.tracking.disk_space import disk_metrics
from rl.tracking.held_out import held_out_metrics
from rl.tracking.metrics import (
    METRICS,
    RENAMED_METRICS,
    current_names,
    describe,
    metrics_reference,
    prometheus_name,
)
from rl.tracking.sinks import JsonlSink, MetricLog
from rl.tracking.step_metrics import (
    call_shares,
    engine_counters_without,
    reward_metrics,
    rollout_metrics,
    tail_metrics,
)
from rl.tracking.summary import summarise
from rl.trajectory import (
    AnswerKind,
    Completion,
    Frames,
    MalformedCall,
    RefusedCall,
    RetrievalCall,
    RewardFailure,
    ScoredGroup,
    Segment,
    SegmentRewards,
    StopReason,
    TimeSpan,
    ToolCall,
    Trajectory,
    TrajectoryGroup,
    Turn,
    VideoTask,
)
from tests.remote_groups import remote

TASK = VideoTask("t", "clip.mp4", "?", "A", AnswerKind.LETTER, TimeSpan(1, 2), 4.0)


def frames(num_frames, scene_lengths, digest):
    return Frames(None, tuple(map(float, range(num_frames))), scene_lengths, 56, 56, digest)


def completion(tokens, cached=0):
    return Completion((7,) * tokens, (-1.0,) * tokens, "stop", 3, cached)


COARSE = frames(8, (2, 2, 2, 2), "v0")
CALL = RetrievalCall(TimeSpan(1, 2), 4, TimeSpan(1, 2), 4, 4, ("fps",))
LOOKED = Trajectory(
    (
        Turn((1,) * 20, completion(5), Segment.SAMPLING, CALL),
        Turn((2,) * 10, completion(3, cached=24), Segment.REASONING, None, frames(4, (1, 3), "v1")),
    ),
    StopReason.ANSWERED,
)
MALFORMED = Trajectory(
    (
        Turn((1,) * 20, completion(5), Segment.SAMPLING, MalformedCall("no frame rate")),
        Turn((2,) * 2, completion(1), Segment.REASONING),
    ),
    StopReason.TRUNCATED,
)
REFUSED = Trajectory((Turn((1,), completion(1), Segment.SAMPLING, RefusedCall("reversed")),), StopReason.TRUNCATED)
GROUP = TrajectoryGroup(TASK, (LOOKED, MALFORMED), COARSE)


def test_rollout_metrics_by_hand():
    metrics = rollout_metrics([remote(GROUP)], pixels_per_token=28 * 28)
    assert metrics["rollout/granted_calls"] == 0.5
    assert metrics["rollout/clamped"] == 1.0  # of granted calls
    assert metrics["rollout/truncated"] == 0.5
    assert metrics["rollout/frames"] == 2.0  # 4 and 0
    assert metrics["rollout/visual_tokens"] == (4 * 4 + 2 * 4 + 4 * 4) / 2
    assert metrics["rollout/sampled_tokens"] == (8 + 6) / 2
    assert metrics["rollout/cached_prompt_share"] == 24 / (20 + 35 + 20 + 27)
    assert metrics["scenes/per_frame"] == 6 / 12  # the shared coarse frames count once
    assert metrics["scenes/per_pair"] == 6 / 6


def test_a_zooms_image_is_one_frame_whatever_number_its_scene_repeats_it_in():
    zoom = ToolCall("zoom", {"time_s": 1.0}, span=TimeSpan(1, 1), box=(0.0, 0.0, 500.0, 500.0), num_frames=1)
    asked, shown = LOOKED.turns
    turns = (replace(asked, call=zoom), replace(shown, frames=frames(6, (6,), "z")))
    group = TrajectoryGroup(TASK, (replace(LOOKED, turns=turns),), COARSE)
    assert rollout_metrics([remote(group)], pixels_per_token=28 * 28)["rollout/frames"] == 1.0


def test_what_engines_did_beside_some_groups_is_what_their_own_calls_do_not_account_for():
    counters = {"requests": 5.0, "prompt_tokens": 150.0, "cached_prompt_tokens": 20.0, "generated_tokens": 15.0}
    counted = {f"engine/{name}": value for name, value in counters.items()} | {
        "engine/encoder_items": 2.0,
        "memory": 9.0,
    }
    group = remote(replace(GROUP, seconds={"generate": 1.5}))
    assert engine_counters_without(counted | {"engine/seconds": 4.0}, [group]) == {
        "engine/requests": 1.0,  # 2 of each sibling
        "engine/prompt_tokens": 150.0 - (20 + 35 + 20 + 27),
        "engine/cached_prompt_tokens": 0.0,  # 24 were: an engine was lost with its counters
        "engine/generated_tokens": 1.0,
        "engine/encoder_items": 2.0,
        "engine/seconds": 2.5,
    }


def groups_finished_at(*finished_s):
    alone = replace(GROUP, trajectories_G=(LOOKED,))
    return [remote(alone, sent_s=10.0, finished_s=10.0 + at_s) for at_s in finished_s]


@pytest.mark.parametrize(
    ("finished_s", "tail_s"),
    [
        (range(1, 11), 1.0),  # evenly: a tenth
        ((1,) * 9 + (10,), 9.0),  # everybody waits for one
        ((1,) * 10 + (10,), 9.0),  # of eleven two are the last tenth: the first of them is done at 1
        ((4,), 0.0),
    ],
)
def test_the_tail_is_what_the_last_tenth_was_waited_for(finished_s, tail_s):
    metrics = tail_metrics(groups_finished_at(*reversed(finished_s)))
    assert metrics["rollout/tail_s"] == tail_s
    assert metrics["rollout/tail_share"] == pytest.approx(tail_s / max(finished_s))


def test_malformed_and_refused_calls_are_no_looks():
    shares = call_shares([LOOKED, MALFORMED, REFUSED, REFUSED])
    assert shares == {"granted_calls": 1 / 4, "malformed_calls": 1 / 4, "refused_calls": 2 / 4}
    assert call_shares([MALFORMED, REFUSED])["granted_calls"] == 0.0


def test_failed_rewards_are_counted_by_cause_and_stay_out_of_the_means():
    rewards = (SegmentRewards(0.5, 1.0, {"answer": 1.0}), RewardFailure("answer", "timeout", ""))
    metrics = reward_metrics([ScoredGroup(GROUP, rewards)])
    assert metrics["reward/sampling"] == 0.5 and metrics["reward/reasoning"] == 1.0
    assert metrics["reward/failed"] == 1.0 and metrics["reward/failed/timeout"] == 1.0


def test_calls_have_means_of_their_own_where_trajectories_have_several():
    once, twice = SegmentRewards(0.2, 1.0, {}, (0.2,)), SegmentRewards(0.5, 1.0, {}, (0.4, 0.6))

    metrics = reward_metrics([ScoredGroup(GROUP, (once, twice))])
    assert (metrics["reward/call/1"], metrics["reward/call/2"]) == pytest.approx((0.3, 0.6))
    assert not [name for name in reward_metrics([ScoredGroup(GROUP, (once,))]) if name.startswith("reward/call")]


def test_numbers_that_rewards_tell_are_means_over_the_trajectories_that_have_them():
    told = [{"judge/latency_s": 1.0, "judge/cached": 0.0}, {"judge/latency_s": 3.0}]
    rewards = tuple(SegmentRewards(None, 1.0, {"judge": 1.0}, numbers=numbers) for numbers in told)
    (group,) = [ScoredGroup(GROUP, rewards)]
    metrics, held_out = reward_metrics([group]), held_out_metrics([group], answer_terms=[])
    for prefix, found in (("reward/number/", metrics), ("held_out/number/", held_out)):
        assert found[f"{prefix}judge/latency_s"] == 2.0 and found[f"{prefix}judge/cached"] == 0.0
        assert describe(f"{prefix}judge/latency_s") == METRICS[prefix]


def test_unannotated_tasks_have_no_mean_sampling_reward_rather_than_zero():
    rewards = (SegmentRewards(None, 1.0, {}), SegmentRewards(None, 0.0, {}))
    assert math.isnan(reward_metrics([ScoredGroup(GROUP, rewards)])["reward/sampling"])


def test_every_metric_has_a_meaning_and_nothing_undeclared_is_logged(tmp_path):
    assert all(unit and meaning for unit, meaning in METRICS.values())
    assert all(f"{unit}{meaning}".isascii() for unit, meaning in METRICS.values())  # Ray's gauges take nothing else
    assert describe("rollout/seconds/decode") == METRICS["rollout/seconds/"]
    log = MetricLog([JsonlSink(tmp_path, keep_through_step=0)])
    with pytest.raises(KeyError, match="mystery/number"):
        log.write(1, {"mystery/number": 1.0})


def test_the_reference_has_a_row_for_every_declared_metric():
    rows = metrics_reference()
    assert [row.name for row in rows] == list(METRICS)
    assert all((row.unit, row.meaning) == METRICS[row.name] for row in rows)


def test_a_line_of_an_earlier_version_is_read_by_the_names_of_today():
    line = {"step": 3, "rollout/calls": 0.5, "scenes/k_over_t": 0.4, "grad/norm": 1.0}
    assert current_names(line) == {"step": 3, "rollout/granted_calls": 0.5, "scenes/per_frame": 0.4, "grad/norm": 1.0}
    assert all(describe(name) for name in RENAMED_METRICS.values())
    assert not RENAMED_METRICS.keys() & METRICS.keys()


class Curves:
    """A sink of numbers."""

    holds_text = False

    def __init__(self):
        self.seen = []

    def write(self, step, metrics):
        self.seen.append((step, dict(metrics)))


def test_texts_go_to_the_lines_and_to_no_curve(tmp_path):
    curves = Curves()
    log = MetricLog([JsonlSink(tmp_path, keep_through_step=0), curves])
    log.write(1, {"grad/norm": math.inf}, {"state/hash": "sha256:0123456789abcdef"})
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["grad/norm"] == "inf" and line["state/hash"] == "sha256:0123456789abcdef"
    assert curves.seen == [(1, {"grad/norm": math.inf})]
    with pytest.raises(KeyError, match="mystery/text"):
        log.write(2, {}, {"mystery/text": "?"})


def test_a_resumed_log_drops_what_the_run_will_repeat_and_a_torn_last_line(tmp_path):
    first = MetricLog([JsonlSink(tmp_path, keep_through_step=0)])
    for step in (1, 2, 3):
        first.write(step, {"reward/reasoning": float(step)})
    first.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "rew')
    MetricLog([JsonlSink(tmp_path, keep_through_step=2)]).close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_the_summary_is_read_off_the_log(tmp_path):
    log = MetricLog([JsonlSink(tmp_path, keep_through_step=0)])
    log.write(0, {"held_out/tasks": 4.0, "held_out/accuracy": 0.25})
    for step in (1, 2):
        numbers = {"reward/sampling": step / 10, "reward/reasoning": step / 4, "reward/failed": 1.0}
        masked = {"reward/failed/video_error": 1.0, "rollout/video_errors": 1.0}
        log.write(step, numbers | masked | {"seconds/step": 2.0, "policy/version": step})
    log.write(2, {"held_out/tasks": 4.0, "held_out/accuracy": 0.75})
    log.close()
    summary = summarise(tmp_path)
    assert (summary["steps"], summary["seconds"], summary["policy_version"]) == (2, 4.0, 2)
    assert summary["rewards"]["sampling"] == {"first": 0.1, "last": 0.2}
    assert summary["held_out"]["before"]["accuracy"] == 0.25 and summary["held_out"]["after"]["accuracy"] == 0.75
    assert summary["masked"] == {"reward_failures": 0.0, "video_errors": 2.0}


def test_a_run_whose_rewards_all_failed_still_counts_its_steps(tmp_path):
    log = MetricLog([JsonlSink(tmp_path, keep_through_step=0)])
    failed = {"reward/failed": 8.0, "rollout/video_errors": 0.0, "seconds/step": 1.0, "policy/version": 1.0}
    log.write(1, failed | {"reward/reasoning": math.nan})
    log.write(0, {"held_out/tasks": 4.0, "held_out/accuracy": 0.25})
    log.close()
    summary = summarise(tmp_path)
    assert summary["steps"] == 1 and summary["masked"]["reward_failures"] == 8.0
    assert "after" not in summary["held_out"]  # one evaluation is a start, not a result


def test_free_space_is_that_of_the_disk_of_a_folder_and_of_none_where_the_disk_does_not_say(tmp_path):
    found, disk = disk_metrics(tmp_path), shutil.disk_usage(tmp_path)
    assert found["disk/free"] == pytest.approx(disk.free, rel=0.05)
    assert 0 <= found["disk/free_share"] <= disk.free / disk.total * 1.05
    assert disk_metrics(tmp_path / "gone") == {}
    assert all(describe(name) for name in found)


def test_counters_have_the_names_that_ray_gives_them():
    assert prometheus_name("reward/sampling") == "ray_dynframe_reward_sampling"
    assert prometheus_name("faults/worker_died") == "ray_dynframe_faults_worker_died_total"
    assert prometheus_name("save/failed") == "ray_dynframe_save_failed_total"
    assert prometheus_name("reward/failed") == "ray_dynframe_reward_failed"
