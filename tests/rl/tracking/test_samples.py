"""Samples as videos and tables, and what TensorBoard and W&B have of them when their files are read back."""

import io
import json
import os
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from rl.tracking.records import records
from rl.tracking.sample_videos import LOOK, MARGIN, PICTURE, sample_video
from rl.tracking.samples import COLUMNS, HELD_OUT, TRAINING, Samples, markdown_table, sample_rows, sample_videos
from rl.tracking.sinks import JsonlSink, MetricLog, TensorBoardSink, WandbSink
from rl.trajectory import (
    AnswerKind,
    Completion,
    Frames,
    MalformedCall,
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
from tests.calibration import within
from tests.wandb_file import artifacts_of, config_of, history_of, stored

RED, BLUE = (220, 20, 20), (20, 20, 220)
TASK = VideoTask("clip-7", "a.mp4", "<video>\nWhat colour?", "D", AnswerKind.LETTER, TimeSpan(6, 8), 4.0)
WORDS = {1: "<think>Look.", 2: "<span>6 - 9</span><fps>2</fps>", 3: "I see <b>red|blue</b>.", 4: "<answer>D</answer>"}


def frames(times_s, colour, digest):
    pixels_THWC = np.full((len(times_s), 28, 56, 3), colour, np.uint8)
    return Frames(pixels_THWC, tuple(times_s), (len(times_s),), 28, 56, digest)


def completion(*tokens):
    return Completion(tokens, (-0.1,) * len(tokens), "stop", 3, 0)


COARSE = frames(range(8), BLUE, "coarse")
CALL = RetrievalCall(TimeSpan(6, 9), 2, TimeSpan(6, 8), 2, 4, ("end",))
LOOKED = Trajectory(
    (
        Turn((9,), completion(1, 2), Segment.SAMPLING, CALL),
        Turn((9,), completion(3, 4), Segment.REASONING, None, frames((6.0, 6.5, 7.0, 7.5), RED, "look")),
    ),
    StopReason.ANSWERED,
    "<think>Look. <video> I see <b>red|blue</b>.<answer>D</answer>",
)
MALFORMED = Trajectory((Turn((9,), completion(1), Segment.SAMPLING, MalformedCall("no rate")),), StopReason.TRUNCATED)
SCORED = ScoredGroup(
    TrajectoryGroup(TASK, (LOOKED, MALFORMED), COARSE, 8.0),
    (SegmentRewards(0.75, 1.0, {"answer": 1.0}), RewardFailure("answer", "timeout", "")),
)


def pieces_of(tokens):
    return [WORDS[token] for token in tokens]


def shown(scored=SCORED):
    return list(records([scored], pieces_of))


@pytest.fixture(scope="module")
def samples():
    return Samples(HELD_OUT, sample_videos(shown(), [SCORED.group]), sample_rows(shown()))


def pictures(gif):
    image = Image.open(io.BytesIO(gif))
    for index in range(image.n_frames):
        image.seek(index)
        yield image.convert("RGB"), image.info["duration"]


def near(pixel, colour):
    return all(abs(one - other) < 40 for one, other in zip(pixel, colour, strict=True))


def test_a_video_shows_the_coarse_frames_then_the_look_that_was_asked_for_and_its_frames(samples):
    (video,) = samples.videos  # of the first sibling
    found = list(pictures(video.gif))
    assert {picture.size for picture, _ in found} == {(video.width, video.height)}
    middle = MARGIN + PICTURE // 2, 30 + PICTURE // 2
    seen = ["blue" if near(picture.getpixel(middle), BLUE) else "red" for picture, _ in found]
    assert seen == ["blue"] * 8 + ["blue"] + ["red"] * 4 + ["red"]  # coarse, first turn, look, second turn
    looks = [any(near(pixel, LOOK) for pixel in picture.crop((480, 340, 640, 366)).getdata()) for picture, _ in found]
    assert looks == [False] * 8 + [True] * 6  # the window is on the bar from the turn that asked for it
    assert found[8][1] > found[0][1] and found[-1][1] > found[8][1]  # texts stay longer than frames


def test_what_it_says_is_task_window_and_rewards(samples):
    (video,) = samples.videos
    assert video.caption == (
        "clip-7 · asked 6 - 9 s at 2 fps · answer expected: D · reward: retrieval 0.75, answer 1.00"
    )


def test_a_zoom_is_a_box_in_the_frame_nearest_to_its_moment_and_then_its_image():
    zoom = ToolCall("zoom", {"time_s": 3.4}, (), TimeSpan(3.4, 3.4), (500.0, 0.0, 1000.0, 500.0), 1)
    zoomed = Trajectory(
        (
            Turn((9,), completion(1, 2), Segment.SAMPLING, zoom),
            Turn((9,), completion(3, 4), Segment.REASONING, None, frames((3.4, 3.4), RED, "zoom")),
        ),
        StopReason.ANSWERED,
        "",
    )
    (record,) = shown(ScoredGroup(TrajectoryGroup(TASK, (zoomed,), COARSE, 8.0), (SegmentRewards(0.5, 1.0, {}),)))
    video = sample_video(record, [COARSE.pixels_THWC, None, zoomed.turns[1].frames.pixels_THWC])
    assert "zoom 500 0 1000 500 at 3.4 s" in video.caption
    found = [picture for picture, _ in pictures(video.gif)]
    top = 30 + PICTURE // 4  # a frame is twice as wide as high: its upper edge
    inside = [near(picture.getpixel((MARGIN + PICTURE // 2, top + PICTURE // 8)), LOOK) for picture in found]
    assert inside == [False] * 8 + [True] + [False] * 3  # on its left edge, half way down


def test_a_long_text_a_strange_one_and_a_video_that_could_not_be_read_are_drawn_all_the_same():
    unread = Trajectory((), StopReason.VIDEO_ERROR)
    group = TrajectoryGroup(replace(TASK, question="\ud800\x00 مرحبا " + "x" * 9000), (unread,), None)
    (record,) = shown(ScoredGroup(group, (RewardFailure("", "video_error", ""),)))
    assert len(list(pictures(sample_video(record, [None]).gif))) == 1
    record = shown()[0]
    record["turns"][0]["tokens"] = ["word " * 20_000, "y" * 20_000]
    assert sample_video(record, [COARSE.pixels_THWC, None, LOOKED.turns[1].frames.pixels_THWC]).gif
    with pytest.raises(ValueError, match="not those of the record"):
        sample_video(record, [COARSE.pixels_THWC[:3], None, None])


def test_a_group_that_was_lost_has_no_video():
    assert sample_videos(shown(), [None]) == ()


def test_rows_say_what_was_asked_what_was_answered_and_what_it_was_worth(samples):
    looked, malformed = samples.rows
    assert (looked.task, looked.evidence_s, looked.asked_s) == ("clip-7", "6 - 8", "6 - 9 at 2 fps")
    assert (looked.frames, looked.retrieval, looked.answer, looked.stop) == (4, 0.75, 1.0, "answered")
    assert (malformed.asked_s, malformed.frames, malformed.answer) == ("malformed", 0, None)
    assert (looked.failed, malformed.failed) == ("", "answer: timeout")


def test_what_a_policy_wrote_stays_in_its_cell(samples):
    head, rule, looked, _ = markdown_table(samples.rows).splitlines()
    assert head.count("|") == rule.count("|") == looked.count("|") == len(COLUMNS) + 1
    assert "<b>" not in looked and "&lt;b&gt;red&#124;blue" in looked


def test_samples_are_made_only_where_a_sink_shows_them(tmp_path):
    numbers = MetricLog([JsonlSink(tmp_path, keep_through_step=-1)])
    numbers.show(1, lambda: pytest.fail("drawn for nobody"))
    numbers.attach(lambda: pytest.fail("made for nobody"))


def test_what_cannot_be_drawn_is_a_warning_and_ends_no_run(tmp_path, caplog):
    numbers = MetricLog([TensorBoardSink(tmp_path, keep_through_step=-1)])
    numbers.show(7, lambda: Samples(HELD_OUT, (sample_video({}, []),)))
    (warning,) = caplog.records
    assert "samples of step 7 are not shown" in warning.getMessage() and warning.exc_info is not None
    numbers.close()


@pytest.mark.thorough
def test_tensorboard_has_curves_configuration_table_and_videos(tmp_path, samples):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorBoardSink(tmp_path, keep_through_step=-1, config_yaml="name: mine\n")
    numbers = MetricLog([sink])
    numbers.write(1, {"reward/sampling": 0.5})
    numbers.show(1, lambda: samples)
    numbers.show(1, lambda: replace(samples, of=TRAINING, rows=()))
    numbers.close()

    read = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in read.Scalars("reward/sampling")] == [(1, 0.5)]
    assert sorted(read.Tags()["images"]) == ["samples/held_out/0", "samples/training/0"]
    (image,) = read.Images("samples/held_out/0")
    assert (image.step, image.width, image.height) == (1, samples.videos[0].width, samples.videos[0].height)
    assert image.encoded_image_string == samples.videos[0].gif
    texts = {
        tag: read.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        for tag in read.Tags()["tensors"]
        if tag.endswith("/text_summary")
    }
    assert "name: mine" in texts["configuration/text_summary"]
    assert "clip-7" in texts["samples/held_out/table/text_summary"]
    assert "asked 6 - 9 s" in texts["samples/training/videos/text_summary"]
    assert "samples/training/table/text_summary" not in texts


@pytest.fixture
def offline_run(tmp_path, samples, monkeypatch, capfd):
    """A W&B run without network, ended: what its file holds, and its folder."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setitem(sys.modules, "openai", sys)  # its presence makes W&B recommend another product of theirs
    page = tmp_path / "report.html"
    page.write_text("<html>the run</html>")
    sink = WandbSink(tmp_path, mode="offline", project="p", name="mine", config={"trainer": {"steps": 3}})
    numbers = MetricLog([sink])
    numbers.write(1, {"reward/sampling": 0.5, "held_out/accuracy": 0.25})
    numbers.show(1, lambda: samples)
    numbers.attach(lambda: page)
    numbers.close()
    assert sink.place == f"offline; to send it: wandb sync {next((tmp_path / 'wandb').glob('offline-run-*'))}"
    assert capfd.readouterr() == ("", "")  # by itself it prints thirty lines
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-mine.wandb")
    deadline = time.monotonic() + within(20)
    while not any(record.HasField("exit") for record in stored(file)):
        assert time.monotonic() < deadline
        time.sleep(0.1)  # W&B's own process writes, and on a busy machine it does not wait for its disk
    return stored(file), file.parent


@pytest.mark.thorough
def test_wandb_has_curves_configuration_table_videos_and_the_report(offline_run, samples):
    found, folder = offline_run
    (history,) = history_of(found)
    assert history["reward/sampling"] == 0.5 and history["held_out/accuracy"] == 0.25 and history["_step"] == 1
    assert history["samples/held_out/_type"] == "videos"
    assert history["samples/held_out/captions"] == [samples.videos[0].caption]
    (gif,) = (folder / "files" / "media").rglob("*.gif")
    assert gif.read_bytes() == samples.videos[0].gif
    (listed,) = (folder / "files" / "media" / "table").rglob("*.table.json")
    told = json.loads(listed.read_text())
    assert history["samples/held_out_table/nrows"] == 2
    assert told["columns"] == list(COLUMNS) and told["data"][0][0] == "clip-7"
    assert config_of(found)["trainer"] == {"steps": 3}
    assert ("report-mine", "report") in artifacts_of(found)
