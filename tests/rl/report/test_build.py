"""A run becomes one file within its budget, texts before pictures, and the page says what it leaves out."""

import base64
import gzip
import json
import re
import shutil

import numpy as np
import pytest

from rl.config.errors import ConfigError
from rl.report.build import build_report, by_priority, choose_details
from rl.report.page import page_bytes
from rl.report.steps import FrameNeeds, ReportStep
from rl.report.thumbnails import FramesUnavailableError
from rl.tracking.faults import write_faults
from rl.trajectory import Fault
from tests.rl.report.recorded_run import append_step, write_failures, write_run


class GreyClips:
    def duration_s(self, video):
        return 8.0

    def frames(self, video, times_ms, longest_side):
        return [np.full((56, 56, 3), 90, np.uint8) for _ in times_ms]


class NoClips:
    def duration_s(self, video):
        raise FramesUnavailableError("clip.mp4: cannot be opened")

    def frames(self, video, times_ms, longest_side):
        raise FramesUnavailableError("clip.mp4: cannot be opened")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    home = tmp_path_factory.mktemp("recorded")
    return write_run(home / "run", home / "clips")


def index_of(page):
    packed = re.search(r'<script type="application/gzip" id="run">([^<]*)</script>', page.read_text())[1]
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def step(name, plain=100, full=400):
    return ReportStep(name, {}, b"f" * full, b"p" * plain, (), ())


def test_a_run_becomes_one_page_with_its_curves_groups_and_pictures(recorded, tmp_path):
    written = build_report(recorded, tmp_path / "report.html", GreyClips(), max_bytes=2**20)
    assert (written.num_steps, written.num_trajectories) == (5, 4 * 3 * 4 + 1) and written.notices == ()
    assert written.num_bytes == (tmp_path / "report.html").stat().st_size
    index = index_of(tmp_path / "report.html")
    assert [step["id"] for step in index["report_steps"]] == ["1", "2", "3", "4", "h4"]
    entropy = next(metric for metric in index["metrics"] if metric["name"] == "policy/entropy")
    assert entropy["unit"] == "nat" and entropy["values"] == [None, 0.3, 0.15, pytest.approx(0.1), 0.075]
    assert index["evaluations"][0]["metric"] == "mIoU" and index["broken"]["count"] == 0


@pytest.mark.parametrize("data_bytes", [14_000, 34_000])
def test_a_page_never_exceeds_its_budget_and_says_what_it_leaves_out(recorded, tmp_path, data_bytes):
    max_bytes = page_bytes([]) + data_bytes
    written = build_report(recorded, tmp_path / "report.html", GreyClips(), max_bytes=max_bytes)
    assert written.num_bytes <= max_bytes
    assert index_of(tmp_path / "report.html")["notices"] == list(written.notices)


def test_clips_that_are_gone_cost_their_pictures_only(recorded, tmp_path):
    written = build_report(recorded, tmp_path / "report.html", NoClips(), max_bytes=2**20)
    assert written.notices == ("4 of 4 clips cannot be shown: clip.mp4: cannot be opened",)


def test_a_budget_below_the_curves_is_refused(recorded, tmp_path):
    with pytest.raises(ConfigError, match="--max-mib"):
        build_report(recorded, tmp_path / "report.html", GreyClips(), max_bytes=10_000)


def test_a_run_without_any_step_is_refused(tmp_path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ConfigError, match="nothing has been reported yet"):
        build_report(tmp_path, tmp_path / "report.html", GreyClips(), max_bytes=2**20)


def test_a_damaged_run_still_has_its_page_and_the_damage_is_counted(recorded, tmp_path):
    shutil.copytree(recorded, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").open("a").write('{"step": 9, "torn')
    (tmp_path / "run" / "trajectories" / "step_000002.jsonl").write_bytes(b"\xff\xfe\x00 no json\n" * 3)
    build_report(tmp_path / "run", tmp_path / "report.html", GreyClips(), max_bytes=2**20)
    broken = index_of(tmp_path / "report.html")["broken"]
    assert broken["count"] == 4 and broken["first"][0]["place"] == "metrics.jsonl:7"


def test_faults_and_texts_among_the_numbers_are_in_the_page(recorded, tmp_path):
    run = shutil.copytree(recorded, tmp_path / "run")
    write_faults(run, 3, [Fault("worker_died", "rollout/0", "signal 9", "replaced", 1e9, 2.5)] * 2)
    append_step(run, 4, {"state/hash": "sha256:1f3a"})
    build_report(run, tmp_path / "report.html", GreyClips(), max_bytes=2**20)
    index = index_of(tmp_path / "report.html")
    assert (index["faults"]["count"], index["faults"]["kinds"]) == (2, [["worker_died", 2]])
    assert index["faults"]["steps"] == [[3, 2]] and index["faults"]["newest"][0]["cause"] == "signal 9"
    state = next(metric for metric in index["metrics"] if metric["name"] == "state/hash")
    assert (state["values"], state["text"]) == ([], "sha256:1f3a")


def test_failures_are_in_the_page_those_that_cost_most_first_and_a_damaged_line_is_listed(recorded, tmp_path):
    run = shutil.copytree(recorded, tmp_path / "run")
    write_failures(run, {}, {"key": "clip a.mp4", "kind": "clip", "cause": "a.mp4: is truncated", "count": 20})
    with (run / "failures.jsonl").open("a") as file:
        file.write('{"key": 1}\n{torn')
    build_report(run, tmp_path / "report.html", GreyClips(), max_bytes=2**20)
    index = index_of(tmp_path / "report.html")
    clip, reward = index["failures"]
    assert (clip["count"], clip["cause"]) == (20, "a.mp4: is truncated")
    assert (reward["count"], reward["first_step"], reward["task"]) == (8, 1, "train:1")
    assert "KeyError: 'gold'" in reward["traceback"] and reward["text"] == "<answer>B</answer>"
    assert [broken["place"] for broken in index["broken"]["first"]] == ["failures.jsonl:3", "failures.jsonl:4"]


def test_faults_of_hostile_text_keep_the_page_small(recorded, tmp_path):
    run, rng = shutil.copytree(recorded, tmp_path / "run"), np.random.default_rng(0)
    noise = ["".join(map(chr, rng.integers(0x20, 0xD7FF, 300))) for _ in range(500)]  # what gzip cannot shrink
    faults = [Fault(noise[i % 500], noise[i % 499], noise[i % 497], noise[i % 491], i, i) for i in range(600)]
    write_faults(run, 1, faults)
    written = build_report(run, tmp_path / "report.html", GreyClips(), max_bytes=3 * 2**20)
    assert written.num_bytes <= 3 * 2**20 and index_of(tmp_path / "report.html")["faults"]["count"] == 600


def test_numbers_per_token_give_way_before_texts_do():
    steps = [step("1"), step("2"), step("3"), step("4")]  # in the page: 136 bytes without, 536 with numbers
    details, notices = choose_details(steps, 10_000)
    assert all(detail == b"f" * 400 for detail in details.values()) and notices == ()
    details, (notice,) = choose_details(steps, 4 * 136 + 2 * 400)
    assert [name for name, detail in details.items() if detail[:1] == b"f"] == ["1", "3"]  # spread evenly
    assert len(details) == 4 and "2 of 4 steps" in notice
    details, notices = choose_details(steps, 2 * 136)
    assert list(details) == ["1", "3"] and len(notices) == 2


def test_any_beginning_of_the_priority_is_spread_over_steps_and_groups():
    needs = [tuple(FrameNeeds(f"{s}", frozenset({g})) for g in range(4)) for s in range(4)]
    steps = [ReportStep(str(s), {}, b"", b"", needs[s], ()) for s in range(4)]
    order = [(need.video, *need.times_ms) for need in by_priority(steps)]
    assert order[:4] == [("0", 0), ("2", 0), ("1", 0), ("3", 0)]
    assert order[4:8] == [("0", 2), ("2", 2), ("1", 2), ("3", 2)]  # another group of each
    assert len(set(order)) == 16
