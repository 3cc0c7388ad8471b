"""`dynframe validate-data`: a verdict per row, each clip decoded once, and runs that honour it."""

import json

import pytest
from rich.console import Console

from rl.config import ConfigError, load_config
from rl.prepare import prepare_tasks, quarantine_file
from rl.validation import validate_data
from tests.envs.clips import render


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


def test_every_row_gets_a_verdict_with_its_reason(config, silent):
    report = validate_data(config, silent, workers=1)

    by_row = {row.row.rpartition("/")[2]: (row.status, row.reason) for row in report.rows if row.split == "train"}
    assert by_row["train:1"] == ("ok", "")
    assert by_row["train:2"] == ("repaired", "clamped to the clip, which ends at 4 s")
    assert {row: by_row[row][0] for row in by_row if row.startswith("train.jsonl")} == {
        f"train.jsonl:{line}": "quarantined" for line in (3, 4, 5, 6)
    }
    assert "CorruptVideoError" in by_row["train.jsonl:3"][1]
    assert "VideoOpenError" in by_row["train.jsonl:4"][1]
    assert "cannot be found" in by_row["train.jsonl:5"][1]
    assert "lies after the end of the video" in by_row["train.jsonl:6"][1]
    assert report.as_dict()["splits"] == {
        "train": {"ok": 1, "repaired": 1, "quarantined": 4},
        "held_out": {"ok": 1},
    }
    assert not report.passed
    assert len(report.listing.read_text().splitlines()) == 7


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
    assert "quarantined by `dynframe validate-data`" in reasons[3]


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

    with open(sound, "ab") as file:  # the file is replaced: an old verdict keeps nothing out
        file.write(b"\0")
    assert [task.task_id for task in prepare_tasks(config, "train", silent).tasks] == ["train:1", "train:2"]
