"""lanes.jsonl on the page: the newest steps that fit, repeated ones once, damaged lines named."""

import json

import pytest

from rl.report.work_lanes import MOST_BYTES, MOST_STEPS, profile_files, read_work_lanes


def line(step, **changes):
    return {"step": step, "start_s": 100.0, "seconds": 2.0, "lanes": {"rollout/0": [["rollout", -0.5, 1.0]]}} | changes


def written(tmp_path, *lines):
    texts = [one if isinstance(one, str) else json.dumps(one) for one in lines]
    (tmp_path / "lanes.jsonl").write_text("\n".join(texts) + "\n")
    return read_work_lanes(tmp_path)


def test_a_run_without_lanes_has_none(tmp_path):
    assert read_work_lanes(tmp_path).steps == ()


def test_steps_are_in_order_and_of_a_repeated_one_the_later_line_counts(tmp_path):
    found = written(tmp_path, line(1), line(2), line(3), line(2, seconds=5.0))
    assert [(step.step, step.seconds) for step in found.steps] == [(1, 2.0), (2, 5.0), (3, 2.0)]
    assert found.steps[0].lanes == (["rollout/0", [["rollout", -0.5, 1.0]]],)


@pytest.mark.parametrize(
    "damaged",
    [
        '{"step": 2, "start_s"',
        "[]",
        {"step": 2},
        line("two"),
        line(2, seconds=-1),
        line(2, start_s="nan"),
        line(2, lanes=[1]),
        line(2, lanes={"rollout/0": [["rollout", 0.0]]}),
        line(2, lanes={"rollout/0": [["rollout", "nan", 1.0]]}),
        line(2, lanes={"rollout/0": 5}),
    ],
    ids=str,
)
def test_a_damaged_line_is_left_out_and_named(tmp_path, damaged):
    found = written(tmp_path, line(1), damaged, line(3))
    assert [step.step for step in found.steps] == [1, 3]
    assert [broken.place for broken in found.broken] == ["lanes.jsonl:2"]


def test_names_are_shown_as_far_as_a_page_has_room_for_them(tmp_path):
    found = written(tmp_path, line(1, lanes={"w" * 500: [["x" * 500, 0.0, 1.0]]}))
    ((worker, ((work, *_),)),) = found.steps[0].lanes
    assert (len(worker), len(work)) == (40, 20)


def test_of_many_steps_the_newest_are_shown(tmp_path):
    found = written(tmp_path, *(line(step) for step in range(MOST_STEPS + 30)))
    assert (len(found.steps), found.steps[-1].step, found.left_out) == (MOST_STEPS, MOST_STEPS + 29, 30)


def test_of_large_steps_as_many_as_there_is_room_for(tmp_path):
    large = {f"rollout/{worker}": [["rollout", 0.0, 1.0]] * 64 for worker in range(64)}
    found = written(tmp_path, *(line(step, lanes=large) for step in range(9)))
    assert 0 < len(found.steps) < 9 and found.left_out == 9 - len(found.steps)
    assert sum(len(json.dumps(step.lanes)) for step in found.steps) <= MOST_BYTES


def test_profiles_are_listed_by_step(tmp_path):
    folder = tmp_path / "profiles" / "step_3"
    folder.mkdir(parents=True)
    for name in ("rollout_0.json.gz", "learner_0.json.gz", ".half.json.gz", "notes.txt"):
        (folder / name).touch()
    (tmp_path / "profiles" / "step_x").mkdir()
    (tmp_path / "profiles" / "step_x" / "a.json.gz").touch()
    assert profile_files(tmp_path) == {3: [f"profiles/step_3/{name}_0.json.gz" for name in ("learner", "rollout")]}
