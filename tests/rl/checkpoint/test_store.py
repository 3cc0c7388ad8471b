"""A checkpoint is whole or it is not one; a crash at any moment leaves the previous one."""

import json
import logging
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.checkpoint import store as checkpoint
from rl.checkpoint.checkpoint import Score, open_checkpoint
from rl.checkpoint.manifest import CheckpointError, complete_records, manifest_text
from rl.checkpoint.rotation import kept_steps
from rl.checkpoint.store import CheckpointStore
from rl.trajectory import RunState

STATE = RunState(step=20, policy_version=21, seed=7)
WEIGHTS = "learner/rank_0.safetensors"


def save(store, step, content=b"weights", value=None):
    draft = store.begin(step)
    (draft / "learner").mkdir()
    (draft / WEIGHTS).write_bytes(content)
    return store.commit(draft, replace(STATE, step=step), f"name: run{step}\n", value)


def steps_in(store):
    return [int(path.name.removeprefix("step_")) for path in sorted(store.folder.glob("step_*"))]


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "run", keep=2)


def test_what_is_saved_comes_back(store):
    save(store, 20)

    found = store.latest_valid()

    assert found.state == STATE
    assert found.config_yaml == "name: run20\n"
    assert (found.folder / WEIGHTS).read_bytes() == b"weights"
    assert (store.folder / "latest").read_text().strip() == found.folder.name


def test_a_run_without_checkpoints_has_none(store):
    assert store.latest_valid() is None


def test_only_the_newest_are_kept_and_only_after_publishing(store):
    for step in (5, 10, 15):
        save(store, step)
    assert [path.name for path in sorted(store.folder.glob("step_*"))] == ["step_00000010", "step_00000015"]


def test_every_so_many_steps_one_is_kept_for_good(tmp_path):
    store = CheckpointStore(tmp_path, keep=1, keep_every=20)
    for step in (10, 20, 30, 40, 50):
        save(store, step)
    assert steps_in(store) == [20, 40, 50]


@given(
    st.sets(st.integers(0, 1000)), st.integers(1, 5), st.integers(0, 50), st.none() | st.integers(0, 1000), st.data()
)
def test_what_is_too_old_stays_too_old(steps, last, every, best, data):
    """The newest always stay; removing in two goes removes the same as in one."""
    kept = kept_steps(steps, last=last, every=every, best=best)
    assert kept == sorted(set(kept), reverse=True)
    assert kept[:last] == sorted(steps, reverse=True)[:last]
    for step in steps - set(kept):
        assert step != best and not (every and step % every == 0)
    assert kept_steps(kept, last=last, every=every, best=best) == kept
    newer = data.draw(st.integers(max(steps, default=0) + 1, 2000))
    at_once = kept_steps([*steps, newer], last=last, every=every, best=best)
    assert kept_steps([*kept, newer], last=last, every=every, best=best) == at_once


def test_one_that_is_being_read_is_removed_when_it_has_been(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    with store.hold(save(store, 10).folder):
        save(store, 20)
        assert steps_in(store) == [10, 20]
    assert steps_in(store) == [20]
    with store.hold(save(store, 30).folder):
        pass
    assert steps_in(store) == [30]  # not too old


@pytest.mark.thorough
def test_a_reader_that_comes_and_goes_while_others_publish_costs_no_checkpoint(tmp_path, monkeypatch):
    """The mirror's thread removes what it has read, the run's threads publish and go back: each sees all or nothing."""
    monkeypatch.setattr(checkpoint, "flush_tree", lambda folder: None)  # hundreds of saves, and no power cut
    monkeypatch.setattr(checkpoint, "flush", lambda path: None)
    store, over = CheckpointStore(tmp_path, keep=1), threading.Event()
    save(store, 10)

    def come_and_go():
        while not over.is_set():
            for folder in store.kept():
                with store.hold(folder):
                    pass

    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(come_and_go)
        try:
            for step in [20, 15, 30, 25, 40, 10] * 30:  # now on, now back
                save(store, step)
                assert store.latest_valid().state.step == step
        finally:
            over.set()
    reading.result()
    assert steps_in(store) == [10]


def test_a_pointer_that_names_something_else_is_not_followed(store):
    save(store, 10)
    for said in ("../../elsewhere", "/etc", "", "step_", "latest"):
        (store.folder / "best").write_text(said)
        assert store.best_valid() is None and store.best_score() is None
        save(store, 10)  # and does not confuse the removal of old ones


HOSTILE_STATES = ["[]", "null", '{"step": "20"}', '{"step": -1}', '{"step": 1e999}', '{"step": true}', '{"x": 1}']


@pytest.mark.parametrize("hostile", HOSTILE_STATES)
def test_a_state_that_is_none_is_refused_though_its_manifest_vouches_for_it(tmp_path, hostile):
    state = {"policy_version": 1, "seed": 0} | (json.loads(hostile) or {} if hostile[0] == "{" else {})
    (tmp_path / "state.json").write_text(json.dumps(state) if hostile[0] == "{" else hostile)
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "manifest.json").write_text(manifest_text(complete_records(tmp_path, [])))
    with pytest.raises(CheckpointError, match=f"{tmp_path}: not readable"):
        open_checkpoint(tmp_path)


def flip_a_byte(folder):
    path = folder / WEIGHTS
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


TEARS = {
    "a missing file": (lambda folder: (folder / WEIGHTS).unlink(), "missing"),
    "a flipped byte": (flip_a_byte, "content differs"),
    "a cut file": (lambda folder: (folder / WEIGHTS).write_bytes(b"wei"), "3 bytes"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "no complete checkpoint"),
    "half a manifest": (lambda folder: (folder / "manifest.json").write_text('{"format": 1, "fi'), "not a manifest"),
    "an altered state": (lambda folder: (folder / "state.json").write_text("{}"), "2 bytes"),
}


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_checkpoint_is_passed_over_with_its_reason(store, tear, caplog):
    damage, reason = TEARS[tear]
    save(store, 10)
    damage(save(store, 20).folder)

    with caplog.at_level(logging.WARNING):
        found = store.latest_valid()

    assert found.state.step == 10
    assert "step_00000020" in caplog.text and reason in caplog.text


def test_opening_a_torn_checkpoint_by_path_says_what_is_wrong(store):
    folder = save(store, 10).folder
    flip_a_byte(folder)
    with pytest.raises(CheckpointError, match=r"rank_0\.safetensors: content differs"):
        open_checkpoint(folder)


def test_a_torn_checkpoint_can_be_saved_again_and_does_not_count_as_kept(store):
    for step in (5, 10, 15):
        torn = save(store, step).folder
    (torn / "manifest.json").unlink()

    save(store, 15, b"again")

    assert (store.latest_valid().folder / WEIGHTS).read_bytes() == b"again"
    assert [path.name for path in sorted(store.folder.glob("step_*"))] == ["step_00000010", "step_00000015"]


def test_a_run_that_goes_back_leaves_its_abandoned_future_aside(store):
    for step in (10, 20):
        save(store, step)
    save(store, 15)
    assert store.latest_valid().state.step == 15
    assert (store.folder / "superseded_step_00000020").is_dir()


@pytest.fixture
def rated(tmp_path):
    """A run whose best checkpoint is told by its held-out accuracy."""
    return CheckpointStore(tmp_path / "run", keep=2, best_metric="held_out/accuracy")


def test_the_best_one_is_never_too_old(rated):
    for step, value in ((5, 0.2), (10, 0.9), (15, 0.3), (20, None), (25, 0.9), (30, 0.1)):
        save(rated, step, value=value)
    assert steps_in(rated) == [10, 25, 30]  # the first of equals, and the newest two
    assert rated.best_valid().state.step == 10
    assert rated.best_score() == (10, Score("held_out/accuracy", 0.9))
    assert (rated.folder / "best").read_text() == "step_00000010\n"


def test_a_run_asks_before_it_saves_whether_a_policy_is_the_best_so_far(rated):
    assert rated.is_best(5, 0.2)  # the first one always is
    save(rated, 5, value=0.2)
    assert rated.is_best(10, 0.3) and not rated.is_best(10, 0.2) and not rated.is_best(10, float("nan"))
    assert not CheckpointStore(rated.folder.parent).is_best(10, 0.3)  # nobody asked for a best one


def test_lower_may_be_better(tmp_path):
    store = CheckpointStore(tmp_path, keep=1, best_metric="-held_out/frames")
    for step, value in ((5, 9.0), (10, 4.0), (15, 6.0)):
        save(store, step, value=value)
    assert store.best_valid().state.step == 10 and steps_in(store) == [10, 15]


def test_a_resumed_run_still_knows_its_best_and_what_it_repeats_does_not_compete_with_itself(rated):
    for step, value in ((5, 0.4), (10, 0.8)):
        save(rated, step, value=value)
    resumed = CheckpointStore(rated.folder.parent, keep=2, best_metric="held_out/accuracy")
    assert resumed.is_best(15, 0.9) and not resumed.is_best(15, 0.8)
    assert resumed.is_best(10, 0.6)  # step 10 once more: only what came before it counts


def test_scores_of_another_metric_do_not_compete_but_its_best_stays_until_there_is_a_new_one(rated):
    save(rated, 5, value=0.9)
    other = CheckpointStore(rated.folder.parent, keep=1, best_metric="held_out/reward_reasoning")
    save(other, 10)
    assert other.best_valid().state.step == 5 and steps_in(other) == [5, 10]
    save(other, 15, value=0.1)
    assert other.best_valid().state.step == 15 and steps_in(other) == [15]


def test_a_best_one_from_an_abandoned_future_is_forgotten(rated):
    for step, value in ((5, None), (20, 0.9)):
        save(rated, step, value=value)
    save(rated, 10)
    assert rated.best_valid() is None and rated.best_score() is None
    save(rated, 15, value=0.1)
    assert rated.best_valid().state.step == 15


def test_a_damaged_best_one_is_refused_not_replaced_by_another(rated):
    flip_a_byte(save(rated, 5, value=0.9).folder)
    save(rated, 10, value=0.1)
    with pytest.raises(CheckpointError, match=r"rank_0\.safetensors: content differs"):
        rated.best_valid()


def test_a_kill_between_publishing_and_pointing_forgets_nothing(rated):
    save(rated, 10, value=0.5)
    run = subprocess.run([sys.executable, "-c", KILLED_WHILE_POINTING, str(rated.folder.parent)])
    assert run.returncode == -9
    assert rated.best_valid().state.step == 10  # older, but whole
    assert not rated.is_best(30, 0.7)  # the better one is known all the same

    save(rated, 30)
    assert rated.best_valid().state.step == 20


KILLED_WHILE_POINTING = """
import os, signal, sys
from rl.checkpoint.store import CheckpointStore
from rl.trajectory import RunState
store = CheckpointStore(sys.argv[1], keep=2, best_metric="held_out/accuracy")
store._point_to_best = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
store.commit(store.begin(20), RunState(20, 21, 7), "", 0.8)
"""

KILLED_WHILE_SAVING = """
import os, signal, sys
from rl.checkpoint import store as checkpoint
from rl.trajectory import RunState
store = checkpoint.CheckpointStore(sys.argv[1])
moment = sys.argv[2]
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
draft = store.begin(20)
(draft / "learner").mkdir()
(draft / "learner/rank_0.safetensors").write_bytes(b"newer")
if moment == "while writing":
    die()
elif moment == "before the manifest":
    checkpoint.manifest_text = die
elif moment == "before the rename":
    checkpoint.flush_tree = die
elif moment == "after the rename":
    checkpoint.flush = lambda path, flush=checkpoint.flush: die() if path == store.folder else flush(path)
store.commit(draft, RunState(20, 21, 7), "")
"""


@pytest.mark.parametrize(
    ("moment", "step"),
    [("while writing", 10), ("before the manifest", 10), ("before the rename", 10), ("after the rename", 20)],
)
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(store, moment, step):
    save(store, 10)
    run = subprocess.run([sys.executable, "-c", KILLED_WHILE_SAVING, str(store.folder.parent), moment])
    assert run.returncode == -9

    assert store.latest_valid().state.step == step

    save(store, 30)
    assert store.latest_valid().state.step == 30
    assert not list(store.folder.glob(".draft_*"))


def test_a_full_disk_is_found_before_anything_is_written(store):
    with pytest.raises(CheckpointError, match=r"needs .* MiB, .* are free; make room"):
        store.begin(1, expected_bytes=2**60)
    assert not list(store.folder.glob(".draft_*"))


def test_a_disk_that_fills_up_while_saving_leaves_the_previous_checkpoint(store, monkeypatch):
    save(store, 10)

    def full(path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "flush_tree", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save(store, 20)
    assert store.latest_valid().state.step == 10
