"""`dynframe validate-data`: a status per row, each clip decoded once, and runs that honour it."""

import io
import json
from dataclasses import replace
from fractions import Fraction

import pytest
from rich.console import Console

from envs.data import clip_status
from envs.data.clip_status import check_clip
from envs.video.reader import VideoTimeoutError
from rl.cli.validation import print_report, validate_data
from rl.config.errors import ConfigError
from rl.config.file import load_config
from rl.run.prepare.tasks import prepare_tasks, prepare_traces, quarantine_file
from tests.envs.video.clips import render

pytestmark = pytest.mark.thorough


@pytest.fixture
def silent():
    return Console(quiet=True)


@pytest.fixture
def config(tmp_path):
    """Rows on four clips of 4 s: one sound and shared by two rows, one cut off, one empty, one missing."""
    videos = tmp_path / "videos"
    videos.mkdir()
    whole = render(videos / "sound.mp4", muxing={"movflags": "faststart"}).read_bytes()
    (videos / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (videos / "empty.mp4").touch()
    rows = [
        ("sound.mp4", 0.0, 2.0),
        ("sound.mp4", 3.0, 9.0),  # ends after the clip
        ("cut.mp4", 0.0, 2.0),
        ("empty.mp4", 0.0, 2.0),
        ("missing.mp4", 0.0, 2.0),
        ("sound.mp4", 5.0, 9.0),  # lies after the clip
    ]
    lines = [
        {"prompt": "<video>\nWhen?", "video": video, "answer": "B", "fps": 2, "gt_span_start": a, "gt_span_end": b}
        for video, a, b in rows
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "held_out.jsonl").write_text(json.dumps(lines[0]) + "\n")
    (tmp_path / "run.yaml").write_text("rewards: {answer: {fn: answer}}\n")
    sources = [
        f"data.{split}={{format: dm_rl, path: {tmp_path}/{split}.jsonl, video_root: {videos}}}"
        for split in ("train", "held_out")
    ]
    return load_config([tmp_path / "run.yaml"], [*sources, f"cache_dir={tmp_path}/cache", "video.decode_workers=0"])


def test_every_row_gets_a_status_with_its_reason(config, silent):
    report = validate_data(config, silent, workers=1)

    by_row = {row.row.rpartition("/")[2]: (row.status, row.reason) for row in report.rows if row.split == "train"}
    assert by_row["train:1"] == ("ok", "")
    assert by_row["train:2"] == ("repaired", "clamped to the clip, which ends at 4 s")
    assert {row for row, (status, _) in by_row.items() if status == "quarantined"} == {
        *("train:3", "train:4", "train.jsonl:5", "train:6")
    }
    assert "CorruptVideoError" in by_row["train:3"][1]
    assert "VideoOpenError" in by_row["train:4"][1]
    assert "cannot be found" in by_row["train.jsonl:5"][1]
    assert "lies after the end of the video" in by_row["train:6"][1]
    assert report.as_dict()["splits"] == {
        "train": {"ok": 1, "repaired": 1, "quarantined": 4},
        "held_out": {"ok": 1},
    }
    assert not report.passed
    assert len(report.listing.read_text().splitlines()) == 7


def test_it_says_what_clips_are_shown_as(config, tmp_path):
    render(tmp_path / "videos" / "sound.mp4", pixel_aspect=Fraction(2), rotation=90)
    console = Console(file=io.StringIO(), width=200)
    report = validate_data(config, console, workers=1)
    print_report(report, console)

    assert report.as_dict()["shown_as"] == {"turned by 90 degrees": 1, "with pixels of 2 : 1 made square": 1}
    assert (
        "1 clip shown turned by 90 degrees\n1 clip shown with pixels of 2 : 1 made square\n" in console.file.getvalue()
    )


def test_a_clip_is_decoded_once_however_many_rows_share_it_and_however_often_it_is_asked(config, silent):
    first = validate_data(config, silent, workers=2)
    again = validate_data(config, silent, workers=2)

    assert (first.clips, first.decoded) == (3, 3)  # sound, cut and empty; the missing one is no clip
    assert (again.clips, again.decoded) == (3, 0)
    assert again.rows == first.rows


def test_a_run_leaves_quarantined_clips_out_and_says_so(config, silent):
    validate_data(config, silent, workers=1)
    tasks = prepare_tasks(config, "train", silent)

    assert [task.task_id for task in tasks.tasks] == ["train:1", "train:2"]
    reasons = {row.line: row.reason for row in tasks.rejected}
    assert reasons[3].startswith("its video is quarantined: CorruptVideoError")


def test_quarantine_is_what_keeps_a_clip_out_that_an_index_would_let_in(config, silent):
    """Damage in the middle of a clip is not in its index: without a validation it is met in the middle of a run."""
    sound = config.data.train.video_root + "/sound.mp4"
    home = quarantine_file(config)
    home.parent.mkdir(parents=True)
    validate_data(config, silent, workers=1)
    lines = [json.loads(line) for line in home.read_text().splitlines()]
    for line in lines:
        if line["video"].endswith("sound.mp4"):
            line |= {"status": "quarantined", "reason": "VideoTimeoutError: decoding did not end"}
    home.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ConfigError, match="no usable row"):
        prepare_tasks(config, "train", silent)

    with open(sound, "ab") as file:  # the file is replaced: an old status keeps nothing out
        file.write(b"\0")
    assert [task.task_id for task in prepare_tasks(config, "train", silent).tasks] == ["train:1", "train:2"]


def test_a_deadline_that_was_missed_is_tried_again(config, silent, monkeypatch):
    """A slow moment of the machine must not cost a sound clip for good."""
    check = clip_status._described_and_checked

    def too_late(reader, path, sample):
        check(reader, path, sample)  # what is no video fails before
        raise VideoTimeoutError(path, "decoding took more than 60 s of processor time", "raise video.decode_timeout_s")

    with monkeypatch.context() as slow:
        slow.setattr(clip_status, "_described_and_checked", too_late)
        assert {row.status for row in validate_data(config, silent, workers=1).rows} == {"quarantined", "undecided"}
    assert prepare_tasks(config, "held_out", silent).tasks  # it stays in

    again = validate_data(config, silent, workers=1)
    assert again.decoded >= 1  # what failed at once needs no other try
    assert [row.status for row in again.rows if row.split == "held_out"] == ["ok"]
    assert prepare_tasks(config, "held_out", silent).tasks


def test_a_sample_opens_every_clip_and_is_no_proof_for_a_whole_validation(config, silent):
    sampled = validate_data(config, silent, workers=1, sample=True)
    assert sampled.decoded == 3 and [row.status for row in sampled.rows if row.split == "held_out"] == ["ok"]
    assert {json.loads(line)["sampled"] for line in quarantine_file(config).read_text().splitlines()} == {True}

    assert validate_data(config, silent, workers=1, sample=True).decoded == 0
    assert validate_data(config, silent, workers=1).decoded == 1  # the sound one; what was refused stays so
    assert validate_data(config, silent, workers=1, sample=True).decoded == 0


def test_a_validation_that_is_ended_has_left_what_it_knew(config, silent, monkeypatch):
    checked = []

    def end_at_the_second(reader, clip, **how):
        if checked:
            raise KeyboardInterrupt
        checked.append(clip)
        return check_clip(reader, clip, **how)

    monkeypatch.setattr("rl.run.prepare.clips.check_clip", end_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        validate_data(config, silent, workers=1)

    assert [json.loads(line)["video"] for line in quarantine_file(config).read_text().splitlines()] == checked
    rows = [json.loads(line) for line in quarantine_file(config).with_name("validated_rows-run.jsonl").open()]
    assert {row["video"] for row in rows} == {"", *checked}  # the rows of that clip, and the one without any


def test_messages_about_a_clip_name_its_file(config):
    console = Console(file=io.StringIO(), width=1000)
    print_report(validate_data(config, console, workers=1), console)
    said = console.file.getvalue()
    for row in ("train:2", "train:3", "train:4", "train:6"):
        line = next(line for line in said.splitlines() if f"{row}:" in line)
        assert "videos/" in line and ".mp4" in line
    assert "decoding 3 clips …" in said


def test_rows_that_share_a_line_are_checked_one_by_one(config, silent, tmp_path):
    def trace(video):
        looks = "<think>Look.<span>0.0 - 1.0</span><fps>2</fps><video>Seen.</think><answer>B</answer>"
        turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": looks}]
        return {"video": [video], "conversations": turns}

    path = tmp_path / "traces.json"
    path.write_text(json.dumps([trace("empty.mp4"), trace("sound.mp4")]))  # one line, two rows
    traces = replace(config.data.train, format="dm_cot", path=str(path))
    taught = replace(config, cold_start=replace(config.cold_start, enabled=True, traces=traces))
    report = validate_data(taught, silent, workers=1)

    assert [row.status for row in report.rows if row.split == "cold_start"] == ["quarantined", "ok"]
    assert [trace.task.video_path[-9:] for trace in prepare_traces(taught, silent)] == ["sound.mp4"]
    with pytest.raises(ConfigError, match="its video is quarantined"):
        prepare_traces(replace(taught, data=replace(taught.data, bad_rows="refuse")), silent)


def test_clips_of_a_cold_start_made_from_evidence_are_validated_too(config, silent):
    made = replace(config, cold_start=replace(config.cold_start, enabled=True, traces=config.data.train))
    report = validate_data(made, silent, workers=1)

    rows = {row.row: row.status for row in report.rows if row.split == "cold_start"}
    assert len(rows) == 6 and rows["train:6"] == "quarantined"  # its window lies after the clip
    assert {trace.task.task_id for trace in prepare_traces(made, silent)} == {"train:1", "train:2"}


def test_a_list_that_is_named_must_be_there(config, silent, tmp_path):
    absent = replace(config, data=replace(config.data, quarantine=str(tmp_path / "absent.jsonl")))

    with pytest.raises(ConfigError, match=r"data\.quarantine: no such file: .*`dynframe validate-data`"):
        prepare_tasks(absent, "train", silent)
