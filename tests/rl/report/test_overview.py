"""Several runs on one page, its data: runs and their states, curves as they grow, predictions wrong ones first."""

import gzip
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from rl.checkpoint.lease.holder import holder_text, this_process
from rl.config.errors import ConfigError
from rl.report.overview.browse import PAGE, Query, browse
from rl.report.overview.curves import MOST_POINTS, MetricLog
from rl.report.overview.folders import find_runs, require_folders, run_id
from rl.report.overview.predictions import read_predictions
from rl.report.overview.rows import STALE_AFTER_S, family_of, is_alive
from rl.report.overview.site import RunsSite
from tests.rl.report.recorded_runs import begin_from, write_curves, write_evaluation


class GreyClips:
    def duration_s(self, video):
        return 8.0

    def frames(self, video, times_ms, longest_side):
        return [np.full((56, 56, 3), 90, np.uint8) for _ in times_ms]

    def shown_at(self, video, times_s, longest_side):
        return self.frames(video, times_s, longest_side)


@pytest.fixture
def home(tmp_path):
    return tmp_path / "runs"


def site(*given):
    return RunsSite(given, GreyClips(), "runs")


def data(answering, path):
    reply = answering.answer(path)
    return None if reply is None else json.loads(gzip.decompress(reply.body))


def listed(answering):
    return {row["name"]: row for row in data(answering, "/data/runs")["runs"]}


def test_runs_are_found_in_folders_and_below_them_and_nothing_within_a_run(home):
    inner = write_curves(home / "sweep" / "a" / "seed0")
    write_curves(inner / "checkpoints" / "odd")  # whatever a run holds is the run's
    write_curves(home / ".hidden")
    (home / "notes").mkdir()
    alone = write_curves(home / "alone")
    assert find_runs([home]) == ([alone, inner], False)
    assert find_runs([inner, home, inner]) == ([inner, alone], False)
    assert find_runs([home / "notes"]) == ([home / "notes"], False)  # named, so it says itself what it lacks
    with pytest.raises(ConfigError, match="no such folder"):
        require_folders([home / "nowhere"])


def test_a_row_has_state_steps_last_numbers_ancestry_and_what_could_not_be_read(home):
    done = write_curves(home / "done", seed=3)
    going = write_curves(home / "going", steps=20)
    (going / "lease.json").write_bytes(holder_text(this_process()))
    begin_from(going, done, 40)
    write_curves(home / "stopped", steps=20)
    write_curves(home / "empty", steps=0)
    torn = write_curves(home / "torn")
    with (torn / "metrics.jsonl").open("a") as log:
        log.write('not json\n{"step": 41, "rew')
    (home / "broken").mkdir()
    (home / "broken" / "config.yaml").write_text("name: [")
    rows = listed(site(home))
    assert {name: row["state"] for name, row in rows.items()} == {
        **{"done": "finished", "going": "live", "stopped": "stopped", "empty": "empty", "torn": "finished"},
        "broken": "broken",
    }
    assert (rows["going"]["step"], rows["going"]["planned"], rows["done"]["seed"]) == (20, 40, "3")
    lines = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    assert rows["done"]["numbers"]["reward/sampling"] == lines[-2]["reward/sampling"]
    assert rows["done"]["numbers"]["held_out/accuracy"] == lines[-1]["held_out/accuracy"]
    assert rows["done"]["updated_s"] == lines[-1]["time_s"] and rows["done"]["started_s"] == lines[0]["time_s"]
    (ancestor,) = rows["going"]["ancestry"]
    assert (ancestor["run"], ancestor["step"], ancestor["id"]) == ("done", 40, run_id(done))
    assert rows["torn"]["reasons"] == [
        "metrics.jsonl: its last line is torn",
        "metrics.jsonl: 1 broken line among the last 45",
    ]
    assert rows["broken"]["reasons"][0].startswith("config.yaml: cannot be read")


def test_a_run_lives_while_its_process_does_and_elsewhere_while_its_lease_is_fresh():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        here = this_process()
        started = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
        other = type(here)(**(asdict(here) | {"process_id": process.pid, "process_started": started}))
        assert is_alive(holder_text(other), changed_s=0.0, now_s=1e9)
        process.stdin.close()
    assert not is_alive(holder_text(other), changed_s=1e9, now_s=1e9)
    elsewhere = type(here)(**(asdict(here) | {"machine": "another"}))
    assert is_alive(holder_text(elsewhere), changed_s=1e9, now_s=1e9 + STALE_AFTER_S / 2)
    assert not is_alive(holder_text(elsewhere), changed_s=1e9, now_s=1e9 + 2 * STALE_AFTER_S)
    assert not is_alive(b"{half", changed_s=1e9, now_s=1e9)


@pytest.mark.parametrize(
    ("name", "seed", "family"),
    [
        ("look-seed3", "0", "look"),
        ("look_s3", "3", "look"),
        ("look-3", "3", "look"),
        ("look-3", "4", "look-3"),  # a version, not the seed
        ("qwen2", "0", "qwen2"),
        ("lr-1e-5", "0", "lr-1e-5"),
        ("3", "3", "3"),
    ],
)
def test_runs_are_of_one_family_if_their_names_differ_by_the_seed(name, seed, family):
    assert family_of(name, seed) == family


def test_the_list_is_sent_again_only_where_something_changed_and_new_runs_are_found(home, monkeypatch):
    monkeypatch.setattr("rl.report.overview.site.AGAIN_S", 0.0)
    first = write_curves(home / "first", steps=5)
    answering = site(home)
    before = answering.answer("/data/runs")
    assert answering.answer("/data/runs").tag == before.tag
    with (first / "metrics.jsonl").open("a") as log:
        log.write('{"step": 6, "time_s": 1.7e9, "reward/sampling": 0.75}\n')
    assert answering.answer("/data/runs").tag != before.tag
    assert listed(answering)["first"]["numbers"]["reward/sampling"] == 0.75
    write_curves(home / "second")
    assert set(listed(answering)) == {"first", "second"}


def test_hundreds_of_runs_are_listed_at_once_and_read_in_turns(home, monkeypatch):
    for number in range(300):
        (home / f"r{number:03}").mkdir(parents=True)
        (home / f"r{number:03}" / "metrics.jsonl").write_text('{"step": 1, "time_s": 1.7e9, "loss/nll": 2.0}\n')
    monkeypatch.setattr("rl.report.overview.site.READING_S", 0.0)  # as if the first took all the time
    answering = site(home)
    index = data(answering, "/data/runs")
    assert (len(index["runs"]), index["unread"]) == (300, 300)
    assert index["runs"][0] | {"id": ""} == {"id": "", "folder": str(home / "r000"), "name": "r000", "state": "unread"}
    monkeypatch.setattr("rl.report.overview.site.READING_S", 60.0)
    index = data(answering, "/data/runs")
    assert index["unread"] == 0 and all(row["step"] == 1 for row in index["runs"])


def test_curves_grow_without_being_read_again_and_a_repeated_step_counts_once(home):
    run = write_curves(home / "run", steps=5)
    log = MetricLog(run)
    log.refresh()
    begun = log.curves(["reward/sampling", "held_out/accuracy", "no/such"])
    assert list(begun["curves"]) == ["reward/sampling"]
    assert begun["curves"]["reward/sampling"]["steps"] == [1, 2, 3, 4, 5]
    assert begun["curves"]["reward/sampling"]["seconds"] == [0.0, 30.0, 60.0, 90.0, 120.0]
    with (run / "metrics.jsonl").open("a") as file:
        file.write(
            '{"step": 5, "time_s": 1.7e9, "reward/sampling": 0.5}\nbroken\n{"step": 6, "reward/sampling": NaN}\n{"st'
        )
        file.flush()
        log.refresh()
        file.write('ep": 7, "time_s": 1.7e9, "reward/sampling": 1.0}\n')
    log.refresh()
    grown = log.curves(["reward/sampling"])
    assert grown["curves"]["reward/sampling"]["steps"] == [1, 2, 3, 4, 5, 7] and grown["broken"] == 1
    assert grown["curves"]["reward/sampling"]["values"][-2:] == [0.5, 1.0]
    write_curves(run, steps=2, seed=9)  # begun anew
    log.refresh()
    assert log.curves(["reward/sampling"])["curves"]["reward/sampling"]["steps"] == [1, 2]


def test_a_long_curve_is_thinned_and_keeps_its_end(home):
    home.mkdir()
    (home / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "loss/nll": 1.0}}\n' for step in range(10_000)))
    log = MetricLog(home)
    log.refresh()
    steps = log.curves(["loss/nll"])["curves"]["loss/nll"]["steps"]
    assert len(steps) <= MOST_POINTS and steps[-1] == 9_999


@pytest.fixture
def evaluated(home):
    """Two runs with the same evaluation: one done, one under way."""
    worse, better = write_curves(home / "worse"), write_curves(home / "better")
    write_evaluation(worse, "nextgqa", ["clip.mp4"], questions=30, right=0.3, seed=1)
    write_evaluation(better, "nextgqa", ["clip.mp4"], questions=30, right=0.9, seed=2, is_done=False)
    return [read_predictions(run / "eval" / "nextgqa") for run in (worse, better)]


def values(page):
    return [[said and said["value"] for said in row["runs"]] for row in page["rows"]]


def test_predictions_come_wrong_ones_first_with_what_every_run_said(evaluated):
    page = browse(evaluated, Query())
    assert (page["metric"], page["total"], page["matching"], len(page["rows"])) == ("acc_qa", 30, 30, PAGE)
    means = [np.mean([value for value in pair if value is not None]) for pair in values(page)]
    assert means == sorted(means)
    row = page["rows"][0]
    assert row["question"] and row["windows_s"] and row["options"] and row["answer"] in "ABCD"
    assert page["runs"][1] | {"answered": 0} == {
        **{"benchmark": "nextgqa", "answered": 0, "is_done": False, "has_questions": True},
        **{"broken": 0, "reason": ""},
    }
    unanswered = [row for row in browse(evaluated, Query(sort="order"))["rows"] if row["runs"][1] is None]
    assert unanswered and all(row["index"] % 5 == 4 for row in unanswered)
    assert {part["type"]: part["count"] for part in page["types"]} == {"CW": 10, "TC": 10, "TN": 10}


def test_predictions_are_filtered_by_type_look_and_text_and_sorted_by_disagreement(evaluated):
    assert {row["type"] for row in browse(evaluated, Query(type="TN"))["rows"]} == {"TN"}
    malformed = browse(evaluated, Query(look="malformed"))
    assert malformed["matching"] == 7 and all(row["index"] % 4 == 2 for row in malformed["rows"])
    assert [row["task"] for row in browse(evaluated, Query(look="problem"))["rows"]] == ["clip11_0"]
    assert [row["index"] for row in browse(evaluated, Query(text="EVENT 17"))["rows"]] == [17]
    assert browse(evaluated, Query(text="it was red"))["matching"] == 30
    spreads = [max(pair) - min(pair) for pair in values(browse(evaluated, Query(sort="spread"))) if None not in pair]
    assert spreads == sorted(spreads, reverse=True) and spreads[0] == 1.0
    page = browse(evaluated, Query(offset=20))
    assert (page["offset"], len(page["rows"])) == (20, 10) and browse(evaluated, Query(offset=10**6))["rows"] == []


def test_a_missing_prediction_is_worse_than_a_wrong_one(home):
    run = write_curves(home / "run")
    folder = write_evaluation(run, "own", ["clip.mp4"], questions=4, right=0.0)
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    lines[3] |= {"metrics": {}, "answer": None, "missing": "the video could not be read"}
    (folder / "predictions.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    first = browse([read_predictions(folder)], Query())["rows"][0]
    assert first["index"] == 3 and first["runs"][0]["problem"] == "the video could not be read"


def test_broken_predictions_cost_their_line_and_a_growing_file_nothing(home):
    folder = write_evaluation(write_curves(home / "run"), "nextgqa", ["clip.mp4"], questions=6)
    with (folder / "predictions.jsonl").open("a") as file:
        file.write('{"task_id": "odd"}\n[1]\n{"task_id": "half')
    found = read_predictions(folder)
    assert (len(found.rows), found.broken) == (6, 2) and "no 'answer' in it" in found.reason
    (folder / "examples.json").write_text("{")
    (folder / "metrics.json").unlink()
    page = browse([read_predictions(folder)], Query())
    assert page["rows"][0]["question"] == "" and page["runs"][0]["has_questions"] is False


def test_pictures_are_of_the_whole_clip_and_of_each_window(home):
    run = write_curves(home / "run")
    write_evaluation(run, "nextgqa", ["clip.mp4"], questions=4)
    asked = f"evaluation=nextgqa&run={run_id(run)}"
    found = data(site(home), f"/data/pictures?{asked}&task=clip0_0")
    whole, look = found["strips"]
    assert (whole["start_s"], whole["end_s"], len(whole["frames"])) == (0.0, 8.0, 10)
    assert len(look["frames"]) == 8 and look["start_s"] < look["frames"][0][0] < look["end_s"]
    assert data(site(home), f"/data/pictures?{asked}&task=no") is None


def test_nothing_but_the_page_its_data_and_reports_of_its_runs_is_answered(home):
    run = write_curves(home / "run")
    write_evaluation(run, "nextgqa", ["clip.mp4"])
    answering, name = site(home), run_id(run)
    assert b'data-live="1"' in answering.answer("/").body
    report = answering.answer(f"/run/{name}/")
    assert b'href="../../"' in report.body and report.policy != answering.answer("/").policy
    assert data(answering, f"/run/{name}/data/run")["name"] == "run"
    for path in (
        *("/run/0123456789ab/", f"/run/{name}", f"/run/{name}/../../config.yaml", "/config.yaml", "/data/nothing"),
        *(f"/data/curves?run={home}", "/data/curves?run=..", "/data/predictions?evaluation=nextgqa&run=x"),
        *(
            f"/data/predictions?run={name}&evaluation=..",
            f"/data/predictions?run={name}&evaluation=../../run/eval",
        ),
        f"/data/predictions?run={name}&evaluation=" + "&x=1" * 1000,
    ):
        assert answering.answer(path) is None, path


def test_what_lies_outside_and_is_linked_to_is_not_found(home, tmp_path):
    write_curves(tmp_path / "elsewhere")
    home.mkdir()
    os.symlink(tmp_path / "elsewhere", home / "link")
    assert find_runs([home]) == ([home], False)
