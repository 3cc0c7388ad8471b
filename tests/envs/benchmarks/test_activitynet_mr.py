"""ActivityNet moment retrieval: captions of a video to sentences, and R1 and mIoU of the window that is answered."""

import pytest

from envs.benchmarks.activitynet_mr import ACTIVITYNET_MR
from envs.data.rows import DatasetError
from rl.trajectory import TimeSpan

CAPTIONS = {
    "v_a": {
        "duration": 73.1,
        "timestamps": [[0, 10.23], [10.6, 39.84]],
        "sentences": ["A man speaks.", "  He turns. "],
    },
    "v_b": {"duration": 20, "timestamps": [[5, 25]], "sentences": ["A dog runs."]},
}


@pytest.fixture
def examples(write, videos):
    return ACTIVITYNET_MR.read(write("val_1.json", CAPTIONS), videos("v_a.mp4", "v_b.mkv")).examples


def test_every_sentence_is_an_example(examples):
    assert [example.task.task_id for example in examples] == ["v_a:0", "v_a:1", "v_b:0"]
    assert [example.windows for example in examples] == [
        (TimeSpan(0, 10.23),),
        (TimeSpan(10.6, 39.84),),
        (TimeSpan(5, 25),),  # as annotated, also after the clip
    ]
    assert "query: He turns.\n" in examples[1].task.question


@pytest.mark.parametrize(
    ("answer", "reached", "iou", "unparsed"),
    [  # the window is 5 - 25: 20 s
        ("5 - 25", (1, 1, 1), 1.0, 0),
        ("5 - 20", (1, 1, 1), 0.75, 0),
        ("15 - 25", (1, 1, 0), 0.5, 0),
        ("0 - 50", (1, 0, 0), 0.4, 0),
        ("5 - 10", (0, 0, 0), 0.25, 0),
        ("25 - 30", (0, 0, 0), 0.0, 0),
        ("25 - 5", (0, 0, 0), 0.0, 1),
        ("7 - 7", (0, 0, 0), 0.0, 1),
        ("the whole video", (0, 0, 0), 0.0, 1),
        (None, (0, 0, 0), 0.0, 1),
    ],
)
def test_golden(examples, says, answer, reached, iou, unparsed):
    values = ACTIVITYNET_MR.score(examples[2], says(answer))
    assert [values["r1@0.3"], values["r1@0.5"], values["r1@0.7"]] == list(reached)
    assert (values["miou"], values["unparsed"]) == (pytest.approx(iou), unparsed)


def test_rows_that_cannot_be_used_are_reported_by_their_number(write, videos, reasons):
    captions = {
        "v_a": {"timestamps": [[0, 4], [9, 3], [1, None], [2], [-1, 3], [1, 2]], "sentences": ["x."] * 5 + [" "]},
        "v_b": {"timestamps": [[0, 4]], "sentences": ["x.", "y."]},
        "v_c": [],
        "v_d": {"timestamps": [[0, 4]], "sentences": ["x."]},
    }
    loaded = ACTIVITYNET_MR.read(write("val.json", captions), videos("v_a.mp4", "v_b.mp4", "v_c.mp4"))
    assert [example.task.task_id for example in loaded.examples] == ["v_a:0"]
    expected = {
        2: "[9, 3] is reversed",
        3: "[1, null] is reversed, empty or not complete",
        4: "must be [start, end]",
        5: "begins before the video",
        6: "'sentence' must be a text",
        7: "video 'v_b' needs as many timestamps as sentences",
        8: "video 'v_c': expected an object with keys, got a list",
        9: "'v_d.mp4' cannot be found",
    }
    assert [line for line, _ in reasons(loaded)] == list(expected)
    for line, reason in reasons(loaded):
        assert expected[line] in reason


def test_a_video_that_stands_twice_is_named(write, videos):
    content = '{"v_a": {"timestamps": [[0, 1]], "sentences": ["x."]}, "v_a": {}}'
    with pytest.raises(DatasetError, match=r"val\.json: the key 'v_a' stands twice in it"):
        ACTIVITYNET_MR.read(write("val.json", content), videos("v_a.mp4"))


def test_in_a_video_a_key_that_stands_twice_costs_that_video(write, videos, reasons):
    content = '{"v_a": {"sentences": [], "sentences": ["x."]}, "v_b": {"timestamps": [[0, 1]], "sentences": ["y."]}}'
    loaded = ACTIVITYNET_MR.read(write("val.json", content), videos("v_a.mp4", "v_b.mp4"))
    assert [example.task.task_id for example in loaded.examples] == ["v_b:0"]
    assert reasons(loaded) == [(1, "video 'v_a': the key 'sentences' stands twice")]


@pytest.mark.parametrize("content", ["[]", "{", "7"])
def test_a_file_that_is_no_object_cannot_be_read(write, tmp_path, content):
    with pytest.raises(DatasetError, match="JSON object"):
        ACTIVITYNET_MR.read(write("val.json", content), tmp_path)


@pytest.mark.real_data
def test_the_published_file_is_read_whole(real_data_dir, videos):
    import json

    path = real_data_dir / "activitynet_mr" / "val.json"
    captions = json.loads(path.read_bytes())
    loaded = ACTIVITYNET_MR.read(path, videos(*(f"{name}.mp4" for name in captions)))
    assert (len(captions), len(loaded.examples), loaded.rejected) == (4917, 17505, ())
    assert (
        sum(e.windows[0].end_s > captions[e.task.task_id.rpartition(":")[0]]["duration"] for e in loaded.examples)
        == 134
    )
