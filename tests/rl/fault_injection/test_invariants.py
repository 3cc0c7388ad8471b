"""What must hold of a run under injected faults, violated one by one on runs made by hand."""

import json
from dataclasses import asdict, replace

import pytest

from rl.fault_injection.artifacts import (
    BY_FAULT,
    BY_ITSELF,
    HUNG,
    STOPPED,
    Launch,
    RecordedTrajectory,
    Rules,
    RunArtifacts,
    read_artifacts,
)
from rl.fault_injection.inject import Injection
from rl.fault_injection.invariants import check_invariants, matches_reference
from rl.fault_injection.recovery import (
    LATE,
    NO_EFFECT,
    RECOVERED,
    RUN_ENDED,
    UNDETECTED,
    not_injected,
    recoveries,
)
from rl.trajectory import AnswerKind, VideoTask

STEPS, G = 3, 2
NAMES = [["a", "b"], ["c", "a"], ["b", "c"]]  # tasks of each step: the second epoch begins inside the second step


def tasks_for(step, attempt):
    return [VideoTask(name, f"{name}.mp4", "?", "A", AnswerKind.LETTER) for name in NAMES[step]]


RULES = Rules(tasks_for, G, 1e-3, 60.0, {"rollout": 90.0, "reward": 25.0, "learner": 60.0})


def line(step, **more):
    reported = {"policy/version": float(step), "seconds/step": 5.0, "parity/max/sampling": 1e-6}
    return {"step": step, "time_s": 100.0 + 10 * step, "state/hash": f"sha256:{step}", **reported, **more}


def siblings(step, **more):
    recorded = [
        RecordedTrajectory(g, s, name, frozenset({step - 1}), "")
        for g, name in enumerate(NAMES[step - 1])
        for s in (0, 1)
    ]
    return tuple(one._replace(**more) for one in recorded)


def injection(fault_type="rollout_killed", time_s=112.0, worker="rollout/0"):
    return Injection(time_s, fault_type, 42, "ray::RolloutWorker.generate", worker)


def fault(detected_s=114.0, worker="rollout/0", kind="worker_died", recovery_s=20.0):
    return {"step": 2, "kind": kind, "worker": worker, "detected_s": detected_s, "recovery_s": recovery_s}


def launch(started_s=90.0, ended_s=1000.0, ended=BY_ITSELF, exit_code=0, **more):
    launched = {"first_step_s": 110.0, "stop_s": 0.0, "reported": 3, "saved": 3, "left": []}
    return Launch(started_s=started_s, ended_s=ended_s, ended=ended, exit_code=exit_code, **{**launched, **more})


FINISHED = launch()
WHOLE = RunArtifacts(
    lines=tuple(line(step) for step in (1, 2, 3)),
    records={step: siblings(step) for step in (1, 2, 3)},
    faults=(fault(),),
    injections=(injection(),),
    launches=(launch(),),
)


def violated(artifacts):
    return {name: found for name, found in check_invariants(artifacts, RULES, STEPS).items() if found}


def with_step(step, recorded):
    return replace(WHOLE, records={**WHOLE.records, step: tuple(recorded)})


def test_a_run_of_which_all_holds_violates_nothing():
    assert violated(WHOLE) == {}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ((line(1), line(3)), "step 2 is reported 0 times"),
        ((line(1), line(2), line(2), line(3)), "step 2 is reported 2 times"),
        ((line(1), line(2), line(3), line(4)), "step 4 was never due"),
        ((line(1), line(3), line(2)), "out of order"),
    ],
)
def test_every_step_is_reported_once_and_in_order(lines, words):
    assert any(words in found for found in violated(replace(WHOLE, lines=lines))["steps"])


@pytest.mark.parametrize(
    ("recorded", "words"),
    [
        (siblings(2)[:-1], "step 2: lost a[1]"),
        ((*siblings(2), siblings(2)[0]), "step 2: repeated or foreign c[0]"),
        (siblings(2, task_id="z"), "lost c[0], c[1], a[0], a[1]; repeated or foreign z[0]"),
        (siblings(2)[::-1], "step 2: in another order"),
        ((), "step 2: lost c[0], c[1], a[0], a[1]"),
    ],
)
def test_every_step_rolls_out_its_tasks_with_all_siblings_and_nothing_else(recorded, words):
    (found,) = violated(with_step(2, recorded))["tasks"]
    assert words in found


def test_a_turn_sampled_with_other_weights_is_found():
    mixed = (siblings(3)[0]._replace(versions=frozenset({1, 2})), *siblings(3)[1:])
    assert violated(with_step(3, mixed)) == {"versions": ["step 3 was sampled with versions [1, 2], not 2 alone"]}


@pytest.mark.parametrize(("versions", "is_found"), [({1, 2}, False), ({1}, False), ({0, 1}, True), ({3}, True)])
def test_where_rollouts_run_ahead_a_step_may_be_as_old_as_the_lag_and_no_older(versions, is_found):
    older = tuple(one._replace(versions=frozenset(versions)) for one in siblings(3))
    found = check_invariants(with_step(3, older), replace(RULES, max_lag=1), STEPS)["versions"]
    assert found == ([f"step 3 was sampled with versions {sorted(versions)}, not 1 or 2 alone"] if is_found else [])


def test_a_version_that_is_left_out_is_found():
    skipped = replace(WHOLE, lines=(line(1), line(2), line(3, **{"policy/version": 5.0})))
    assert violated(skipped)["versions"][0] == "step 3 pushed version 5 after 2"


@pytest.mark.parametrize("value", [2e-3, "nan", "inf"])
def test_parity_beyond_the_limit_is_found_and_so_is_what_is_not_a_number(value):
    lost = replace(WHOLE, lines=(line(1), line(2, **{"parity/max/reasoning": value}), line(3)))
    (found,) = violated(lost)["parity"]
    assert found.startswith(f"step 2: parity/max/reasoning is {value} nat")


def test_a_trajectory_without_rewards_needs_an_injected_fault_that_explains_it():
    masked = with_step(2, siblings(2, failed="timeout"))
    assert "4 trajectories have no rewards (timeout)" in violated(masked)["rewards"][0]
    reward, noticed = injection("reward_stopped", 105.0, "reward/0"), fault(118.0, "reward/0", "worker_hung")
    assert violated(replace(masked, injections=(reward,), faults=(noticed,))) == {}
    raised = with_step(2, siblings(2, failed="raised"))  # the loss of a process never makes a reward raise
    assert "rewards" in violated(replace(raised, injections=(reward,), faults=(noticed,)))


def test_rewards_lost_long_before_or_after_the_fault_are_not_explained_by_it():
    masked = with_step(2, siblings(2, failed="video_error"))
    before, after = injection("decoder_killed", 125.0, ""), injection("decoder_killed", 20.0, "")
    assert all("rewards" in violated(replace(masked, injections=(one,))) for one in (before, after))


def outcome(injections, faults, launches=(FINISHED,)):
    found = recoveries(replace(WHOLE, injections=injections, faults=faults, launches=launches), RULES)
    return [recovery.outcome for recovery in found]


def test_an_injected_fault_is_matched_with_the_line_of_its_own_worker():
    (recovery,) = recoveries(WHOLE, RULES)
    assert (recovery.outcome, recovery.detection_s, recovery.recovery_s) == (RECOVERED, 2.0, 20.0)
    assert outcome((injection(worker="rollout/1"),), (fault(),)) == [UNDETECTED]
    assert outcome((injection(worker=""),), (fault(),)) == [RECOVERED]  # its title did not show which worker it was


def test_a_lost_decoder_is_reported_under_its_worker_if_it_was_needed_again_and_has_no_effect_if_not():
    killed, detected = injection("decoder_killed", worker=""), fault(130.0, "rollout/0/decoder", "decoder_death", 0.2)
    assert outcome((killed,), (detected,)) == [RECOVERED] and outcome((killed,), ()) == [NO_EFFECT]
    assert outcome((injection(worker=""),), (detected,)) == [UNDETECTED]  # an engine that died is another thing


def test_of_two_lines_a_fault_takes_the_one_of_its_kind():
    killed, stopped = injection(worker="", time_s=112.0), injection("rollout_stopped", 100.0, "")
    lines = (fault(113.0, "rollout/1", "worker_hung"), fault(114.0, "rollout/0", "worker_died"))
    found = recoveries(replace(WHOLE, injections=(stopped, killed), faults=lines, launches=(FINISHED,)), RULES)
    assert [recovery.line for recovery in found] == [0, 1]


def test_two_faults_need_two_lines_unless_the_second_hit_the_replacement_as_it_started():
    twice = (injection(time_s=112.0), injection(time_s=150.0))
    assert outcome(twice, (fault(114.0, recovery_s=20.0),)) == [RECOVERED, UNDETECTED]
    assert outcome(twice, (fault(114.0, recovery_s=60.0),)) == [RECOVERED, RECOVERED]
    assert outcome(twice, (fault(114.0), fault(151.0))) == [RECOVERED, RECOVERED]


def test_faults_that_were_not_injected_are_listed_apart():
    other = fault(118.0, "rollout/1", "worker_hung")
    found = replace(WHOLE, faults=(fault(), other))
    assert not_injected(found, recoveries(found, RULES)) == [other] and violated(found) == {}


def test_ranks_lost_together_are_rebuilt_together():
    ranks = (injection("learner_killed", 112.0, "learner/0"), injection("learner_killed", 113.0, "learner/1"))
    assert outcome(ranks, (fault(114.0, "learner", "learner_lost"),)) == [RECOVERED, RECOVERED]


def test_a_fault_detected_late_is_a_violation_with_its_seconds():
    late = replace(WHOLE, faults=(fault(detected_s=130.0),))  # 18 s; the loss of a rollout worker is detected within 10
    assert [recovery.outcome for recovery in recoveries(late, RULES)] == [LATE]
    assert "detected late, after 18.0 s" in violated(late)["faults"][0]


def test_a_stopped_worker_is_detected_by_its_deadline_and_a_fault_meanwhile_may_wait_as_long():
    """A stopped learner: 60 s, a step of 5 s, 10 s to detect it. Until then the driver may be blocked."""
    stopped = injection("learner_stopped", 112.0, "learner/0")
    lines = (fault(180.0, "learner", "learner_lost"), fault(181.0))
    assert outcome((stopped, injection(time_s=115.0)), lines) == [RECOVERED, RECOVERED]
    assert outcome((stopped,), (fault(190.0, "learner", "learner_lost"),)) == [LATE]


def on_node(address, **more):
    return fault(**more) | {"failure": {"node": address}}


def test_a_lost_node_is_recovered_when_the_last_of_its_workers_is_back():
    killed = replace(injection("node_killed", 112.0, "node/10.77.0.2"), note="with learner, rollout")
    faults = [
        on_node("10.77.0.3", detected_s=113.0),
        on_node("10.77.0.2", detected_s=118.0, recovery_s=30.0, worker="learner", kind="learner_lost"),
        on_node("10.77.0.2", detected_s=121.0, recovery_s=40.0),
    ]
    artifacts = replace(WHOLE, injections=(killed,), faults=tuple(faults))
    (found,) = recoveries(artifacts, RULES)
    assert (found.outcome, found.detection_s, found.recovery_s) == (RECOVERED, 9.0, 49.0)
    assert not_injected(artifacts, [found]) == faults[:1]


def test_two_lost_nodes_have_their_own_lines_and_ranks_elsewhere_may_tell_of_a_lost_one():
    first = replace(injection("node_killed", 112.0, "node/10.77.0.2"), note="with learner")
    second = replace(first, time_s=150.0, worker="node/10.77.0.3")
    learner = {"worker": "learner", "kind": "learner_lost"}
    faults = [on_node("10.77.0.9", detected_s=130.0, **learner), on_node("10.77.0.3", detected_s=170.0, **learner)]
    assert outcome([first, second], faults) == [RECOVERED, RECOVERED]
    assert outcome([first, second], faults[1:]) == [RECOVERED, UNDETECTED]


def test_a_lost_node_without_workers_has_no_effect_and_one_with_workers_must_be_reported():
    empty = replace(injection("node_killed", 112.0, "node/10.77.0.2"), note="with no workers")
    assert outcome([empty], []) == [NO_EFFECT]
    with_engine = replace(empty, note="with reward, rollout")
    assert outcome([with_engine], []) == [UNDETECTED]
    assert outcome([with_engine], [on_node("10.77.0.2", worker="reward/0")]) == [UNDETECTED]  # and the engine?
    assert outcome([with_engine], [on_node("10.77.0.2")]) == [RECOVERED]


@pytest.mark.parametrize("kind", ["node_network_slow", "object_store_full", "disk_full", "gcs_restarted"])
def test_what_passes_by_itself_is_recovered_with_the_next_step(kind):
    lines = tuple(line(step) | {"time_s": time_s} for step, time_s in ((1, 110.0), (2, 125.0), (3, 137.0)))
    (found,) = recoveries(replace(WHOLE, injections=(injection(kind, 112.0, "node/10.77.0.2"),), lines=lines), RULES)
    assert (found.outcome, found.recovery_s) == (RECOVERED, 5.0)  # 20 s later
    assert outcome([injection(kind, 112.0)], []) == [UNDETECTED]  # no step after it: the run did not go on


def test_a_fault_that_the_run_could_no_longer_report_is_no_violation():
    cut = launch(ended_s=120.0, ended=BY_FAULT, exit_code=-9)
    assert outcome((injection(),), (), (cut, launch(started_s=121.0))) == [RUN_ENDED]
    long_after = launch(ended_s=400.0, ended=BY_FAULT, exit_code=-9)
    assert outcome((injection(),), (), (long_after, launch(started_s=401.0))) == [UNDETECTED]


@pytest.mark.parametrize(
    ("launches", "words"),
    [
        ((launch(exit_code=1),), "launch 1 ended by itself with exit code 1"),
        ((launch(), launch()), "launch 1 ended by itself with exit code 0"),
        ((launch(ended=BY_FAULT, exit_code=-9),), "never finished"),
        ((), "never finished"),
        ((launch(ended=HUNG, exit_code=-9),), "made no step any more after step 3"),
        ((launch(ended=STOPPED, exit_code=1), launch()), "exit code 1 after SIGTERM"),
        ((launch(ended=STOPPED, exit_code=143, stop_s=91.0), launch()), "took 91 s to end after SIGTERM"),
        ((launch(ended=STOPPED, exit_code=143, saved=2), launch()), "done 3 steps at SIGTERM, but saved 2"),
    ],
)
def test_launches_end_as_expected(launches, words):
    assert any(words in found for found in violated(replace(WHOLE, launches=launches))["endings"])


def test_a_run_stopped_before_its_first_step_has_nothing_to_save():
    early = launch(ended=STOPPED, exit_code=143, saved=2, first_step_s=0.0)
    assert violated(replace(WHOLE, launches=(early, launch()))) == {}


def test_processes_and_drafts_that_are_left_are_found():
    left = replace(WHOLE, launches=(launch(left=[7]),), drafts=(".draft_00000003_x",))
    assert violated(left) == {"leftovers": ["launch 1 left processes [7]", ".draft_00000003_x is left of a save"]}


def test_a_step_that_differs_from_the_run_without_faults_is_named():
    assert matches_reference(WHOLE, WHOLE.lines, STEPS) == []
    other = [line(1), line(2, **{"state/hash": "sha256:x"}), line(3)]
    assert matches_reference(WHOLE, other, STEPS) == ["step 2 differs from the run without faults: state/hash"]
    assert len(matches_reference(WHOLE, other[:1], STEPS)) == 2
    bare = replace(WHOLE, lines=({"step": 1},))
    assert matches_reference(bare, [{"step": 1}], 1) == ["step 1 differs from the run without faults: no fingerprints"]


def test_everything_is_read_from_disk_as_it_was_written(tmp_path):
    run = tmp_path / "run"
    (run / "trajectories").mkdir(parents=True)
    (run / "checkpoints" / ".draft_00000001_x").mkdir(parents=True)
    evaluation = {"step": 1, "held_out/tasks": 4.0}  # a line, but of no training step
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (line(1), evaluation)) + "{torn")
    record = {"group": 0, "sibling": 1, "task": {"id": "a"}, "turns": [{"policy_version": 0}], "rewards": {}}
    record["rewards"] = {"failed": {"term": "*", "cause": "worker_died", "detail": ""}}
    (run / "trajectories" / "step_000001.jsonl").write_text(json.dumps(record) + "\n")
    (run / "faults.jsonl").write_text(json.dumps(fault()) + "\n")
    for name, one in (("chaos.jsonl", injection()), ("launches.jsonl", launch())):
        (tmp_path / name).write_text(json.dumps(asdict(one)) + "\n")
    read = read_artifacts(tmp_path, run)
    assert read.lines == (line(1),) and read.injections == (injection(),) and read.launches == (launch(),)
    assert read.records == {1: (RecordedTrajectory(0, 1, "a", frozenset({0}), "worker_died"),)}
    assert read.faults == (fault(),) and read.drafts == (".draft_00000001_x",)
    assert len(read.broken) == 1 and read.broken[0].startswith("metrics.jsonl:3")
