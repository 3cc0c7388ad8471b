"""FlexiVideo's ablation as numbers: what a block is, what is summed, what is shown, and what is drawn."""

import csv
import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rl.config.errors import ConfigError
from rl.config.policy import ScenesConfig, TinyPolicyConfig
from rl.encode_stats import measure as encode_clips
from rl.encode_stats.figure import draw, require_drawable
from rl.encode_stats.inputs import EncodeLimits, find_videos, parse_rates, require_writable
from rl.encode_stats.measure import encode_stats
from rl.encode_stats.rows import (
    MODES,
    Block,
    CsvRows,
    EncoderCost,
    EncodeReport,
    EncodeRow,
    Measured,
    Skipped,
    as_dict,
    binned,
    block_times,
    histogram_of,
    labels,
    totals,
)
from rl.encode_stats.tables import print_report
from rl.encode_stats.vision_config import TINY
from rl.policy.policy_folder import flexivideo_section
from rl.policy.tiny import build_tiny_policy, vision_section
from tests.envs.setting import write_clip

pytestmark = pytest.mark.thorough


def row(mode, lengths, *, clip="a.mp4", fps=2.0, flops=10**9, seconds=(1.0, 9.0, 2.0), peak=100):
    """Frames of 28 x 56 pixels, two tokens per scene; seconds=None: counted only."""
    block = Block(clip, fps, fps, mode, 28, 56, lengths, 2)
    cost = EncoderCost(Measured(seconds), peak) if seconds else None
    return EncodeRow(block, flops, Measured((0.5,)), Measured((0.25, 0.25)), cost)


def report(*rows, skipped=()):
    return EncodeReport("tiny", 257_344, 30.0, 64, 151_200, rows, skipped)


def shown(given):
    console = Console(file=io.StringIO(), width=100)
    print_report(given, console)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("duration_s", "native_fps", "asked", "frames", "fps"),
    [
        (10.0, 25.0, 2.0, 20, 2.0),
        (10.0, 5.0, 8.0, 50, 5.0),  # never faster than the clip
        (90.0, 25.0, 2.0, 60, 2.0),  # the first 30 s
        (30.0, 25.0, 10.0, 64, 10.0),  # the first 64 frames
        (0.04, 25.0, 2.0, 1, 2.0),  # a single frame is a block, too
    ],
)
def test_a_block_is_the_clips_start_at_a_rate_it_has(duration_s, native_fps, asked, frames, fps):
    times_s, granted = block_times(duration_s, native_fps, asked, max_seconds=30.0, max_frames=64)
    assert (len(times_s), granted) == (frames, fps)
    assert times_s[0] == 0 and times_s[-1] == pytest.approx((frames - 1) / fps)


@given(st.lists(st.integers(1, 64), min_size=1, max_size=50))
def test_scene_histograms_hold_every_scene_once_and_every_frame(lengths):
    histogram = histogram_of(lengths)
    assert sum(length * count for length, count in histogram.items()) == sum(lengths)
    assert sum(binned(histogram).values()) == len(lengths)


def test_bins_are_named_by_the_lengths_they_hold():
    counts = binned(histogram_of([1, 1, 2, 3, 4, 8, 9, 17, 64]))
    assert counts == {"1": 2, "2": 1, "3-4": 2, "5-8": 1, "9-16": 1, "17+": 2}


def test_sums_over_clips_are_compared_with_pairs_of_the_same_frames():
    pairs = [row("fixed2", (2, 2, 1)), row("fixed2", (2,), clip="b.mp4", peak=300)]
    dynamic = [row("dynamic_literal", (5,), flops=3 * 10**9), row("dynamic_literal", (1, 1), clip="b.mp4")]
    fixed, literal = totals([*pairs, *dynamic])
    assert (fixed.clips, fixed.num_frames, fixed.num_scenes, fixed.num_pairs) == (2, 7, 4, 4)
    assert (fixed.visual_tokens, fixed.saving, fixed.peak_bytes) == (8, 0, 300)
    assert (literal.visual_tokens, literal.reference_tokens) == (6, 8) and literal.saving == 0.25
    assert literal.histogram == {1: 2, 5: 1}
    assert literal.kpixel_per_tflop == pytest.approx(7 * 28 * 56 / 1e3 / 0.004)
    assert literal.encode_s == 4.0 and literal.decode_s == 1.0 and literal.segment_s == 0.5  # medians: 2, .5, .25 each


def test_what_was_not_run_is_absent_and_not_zero():
    (total,) = totals([row("fixed2", (2,), seconds=None)])
    assert total.encode_s is None and total.peak_bytes is None
    written = as_dict(report(row("fixed2", (2,), seconds=None)))["rows"][0]
    assert written["encode_s"] is None and written["peak_bytes"] is None and written["encode_s_all"] is None


def test_the_report_shows_limits_changes_and_what_was_skipped():
    skipped = (
        Skipped("/x/[red]broken.mp4", "is empty (zero bytes); download it again"),
        *(Skipped(f"/x/{n}.json", "not a video by its name (.json)") for n in range(2)),
    )
    text = shown(report(row("fixed2", (2, 2)), row("dynamic_literal", (1, 1, 1, 1)), skipped=skipped))
    assert "the first 30 s, at most 64 frames of at most 151200 pixels" in " ".join(text.split())
    assert "8 (+100%)" in text and "-0%" not in text
    assert "/x/[red]broken.mp4: is empty" in text  # markup in a name is text
    assert "2 other files: 2 not a video by its name (.json)" in text


def test_json_and_csv_say_the_same(tmp_path):
    given = report(row("fixed2", (2, 2, 1)), row("fixed6", (5,)))
    written_as_they_come = CsvRows(tmp_path / "rows.csv")
    for one in given.rows:
        written_as_they_come.add([one])
    with (tmp_path / "rows.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    written = json.loads(json.dumps(as_dict(given)))
    assert [line["scene_lengths"] for line in lines] == ["1x1 2x2", "5x1"]
    assert [int(line["visual_tokens"]) for line in lines] == [r["visual_tokens"] for r in written["rows"]] == [6, 2]
    assert written["rows"][0]["scenes_per_frame"] == 0.6 and written["rows"][1]["scenes_per_pair"] == pytest.approx(
        1 / 3
    )
    assert written["rows"][0]["encode_s"] == 2.0 and written["rows"][0]["encode_s_all"] == [1.0, 9.0, 2.0]
    assert written["totals"][1]["histogram"] == {"5": 1}


def test_clips_of_one_name_are_labelled_by_their_folders():
    assert labels(["/a/x/c.mp4", "/a/y/c.mp4", "/a/y/d.mp4"]) == {
        "/a/x/c.mp4": "x/c.mp4",
        "/a/y/c.mp4": "y/c.mp4",
        "/a/y/d.mp4": "d.mp4",
    }


def test_the_figure_is_drawn_whatever_a_clip_is_named(tmp_path):
    rows = [
        row(mode, (2, 1), clip=clip, fps=fps)
        for clip in ("$x_{^$.mp4", "b.mp4")
        for fps in (2.0, 8.0)
        for mode in MODES
    ]
    draw(report(*rows), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_matplotlib_is_said_with_its_remedy(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"--plot needs matplotlib.*pip install matplotlib"):
        require_drawable(Path("figure.png"))


@pytest.mark.parametrize("name", ["figure.abc", "figure"])
def test_a_picture_whose_name_is_no_format_is_refused_before_any_work(name):
    with pytest.raises(ConfigError, match=rf"--plot {name}: a name must end in .*\.png"):
        require_drawable(Path(name))
    require_drawable(Path("FIGURE.PNG"))


@pytest.mark.parametrize("text", ["", "2,", "0", "-1", "nan", "inf", "2;4", "1e9"])
def test_rates_that_are_none_are_refused(text):
    with pytest.raises(ConfigError, match="--fps must be numbers"):
        parse_rates(text)


def test_rates_are_sorted_and_taken_once():
    assert parse_rates("8, 2,2.5,8") == [2.0, 2.5, 8.0]


def test_an_output_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    require_writable("--csv", tmp_path / "new.csv")
    for path in (tmp_path, tmp_path / "absent" / "new.csv"):
        with pytest.raises(ConfigError, match=r"--csv .*can be written"):
            require_writable("--csv", path)


def test_folders_are_searched_and_everything_else_is_reported(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("deep/er/a.MP4", "b.webm", "c.wmv", "d.MPG", "e.Gif", "notes.txt", "plain"):
        (tmp_path / name).touch()
    (tmp_path / "deep" / "circle").symlink_to(tmp_path)
    found, skipped = find_videos([tmp_path, tmp_path / "b.webm", tmp_path / "notes.txt", tmp_path / "absent"])
    assert [path.name for path in found] == [
        "b.webm",
        "c.wmv",
        "d.MPG",
        "e.Gif",
        "a.MP4",
        "notes.txt",
    ]  # named files are tried, each file once
    assert {(s.path.rsplit("/")[-1], s.reason) for s in skipped} == {
        ("notes.txt", "not a video by its name (.txt)"),
        ("plain", "not a video by its name (no suffix)"),
        ("absent", "no such file or folder"),
        ("circle", "a link to a folder is not followed; name it to have it searched"),
    }


def test_a_folder_that_cannot_be_listed_is_reported_and_the_rest_is_found(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    (tmp_path / "open.mp4").touch()
    real = os.scandir

    def scandir(folder):  # permissions do not stop the user the tests may run as
        if Path(folder).name == "locked":
            raise PermissionError(13, "Permission denied", folder)
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    found, skipped = find_videos([tmp_path])
    assert found == [tmp_path / "open.mp4"]
    assert skipped == [Skipped(str(tmp_path / "locked"), "a folder that cannot be listed: Permission denied")]


@pytest.fixture
def decoding_here(monkeypatch):
    """No process per reader: seconds saved."""
    real = encode_clips.VideoReader
    monkeypatch.setattr(encode_clips, "VideoReader", lambda **kw: real(**kw | {"workers": 0}))


def test_a_clip_that_changes_a_little_in_every_frame_is_counted_as_the_rules_say(tmp_path, decoding_here):
    clip = write_clip(tmp_path / "grey.mp4", seconds=2.0, fps=10, size=56)  # 8 levels brighter per frame
    found = encode_stats([clip], [5.0], "qwen2.5-vl-3b", EncodeLimits(), Console(quiet=True), repeats=1)
    blocks = {r.block.mode: r.block for r in found.rows}
    # Ten frames 16 levels apart: Δ = 16 / 255 * |1/std| = 0.48 > 0.2, so every frame is a scene of its own,
    # and the budget lets no more than five be.
    assert blocks["fixed2"].scene_lengths == (2,) * 5 and blocks["fixed6"].scene_lengths == (6, 4)
    assert blocks["dynamic_literal"].scene_lengths == (1,) * 10
    assert blocks["dynamic_budget"].num_scenes == 5 and blocks["dynamic_budget"].num_frames == 10
    assert blocks["dynamic_literal"].visual_tokens == 10 * 4  # 56 x 56 pixels are 2 x 2 merged blocks
    assert all(r.encoder is None and r.flops > 0 for r in found.rows)  # 3 B is not run unless asked for
    assert totals(found.rows)[2].saving == -1.0


def test_unreadable_files_are_reported_and_the_rest_goes_on(tmp_path, decoding_here):
    write_clip(tmp_path / "good.mp4", seconds=1.0)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video")
    found = encode_stats([tmp_path], [2.0], "tiny", EncodeLimits(), Console(quiet=True), measure=False)
    assert {r.block.clip for r in found.rows} == {str(tmp_path / "good.mp4")} and len(found.rows) == len(MODES)
    reasons = {s.path.rsplit("/")[-1]: s.reason for s in found.skipped}
    assert "is empty" in reasons["empty.mp4"] and "not a readable video" in reasons["text.mp4"]


def test_a_run_that_is_ended_has_left_the_clips_it_did(tmp_path, decoding_here):
    for name in ("a.mp4", "b.WMV"):
        write_clip(tmp_path / "clip.mp4", seconds=1.0).rename(tmp_path / name)
    (tmp_path / "rows.csv").write_text("of an earlier run")
    rows = CsvRows(tmp_path / "rows.csv")

    def end_after_the_first(of_clip):
        rows.add(of_clip)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_stats(
            [tmp_path], [2.0], "tiny", EncodeLimits(), Console(quiet=True), measure=False, on_clip=end_after_the_first
        )
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert [Path(line["clip"]).name for line in csv.DictReader(file)] == ["a.mp4"] * len(MODES)


def test_nothing_readable_is_an_error_that_says_why(tmp_path):
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(ConfigError, match=r"not one readable video .*empty\.mp4: is empty"):
        encode_stats([tmp_path], [2.0], "tiny", EncodeLimits(), Console(quiet=True), measure=False)


@pytest.mark.parametrize(("geometry", "limits"), [("huge", EncodeLimits()), ("tiny", EncodeLimits(max_pixels=100))])
def test_geometries_and_sizes_that_cannot_be_are_refused(geometry, limits, tmp_path):
    with pytest.raises(ConfigError, match=r"--geometry must be tiny|--max-pixels must be at least 784"):
        encode_stats([tmp_path], [2.0], geometry, limits, Console(quiet=True))


@pytest.mark.parametrize("geometry", TINY)
def test_the_tiny_tower_is_really_run(geometry, tmp_path, decoding_here):
    clip = write_clip(tmp_path / "grey.mp4", seconds=1.0, size=56)
    found = encode_stats([clip], [8.0], geometry, EncodeLimits(), Console(quiet=True), repeats=2)
    for r in found.rows:
        assert len(r.encoder.seconds.values) == 2 and min(r.encoder.seconds.values) > 0
        assert r.encoder.peak_bytes > 8 * 56 * 56 * 3  # at the least, the pixels


def test_a_checkpoints_own_tower_is_taken_from_its_folder(tmp_path, decoding_here):
    clip = write_clip(tmp_path / "grey.mp4", seconds=1.0, size=56)
    wider = TinyPolicyConfig(vision_hidden_size=2 * TinyPolicyConfig().vision_hidden_size)
    vision = vision_section(wider) | {"flexivideo": flexivideo_section(ScenesConfig())}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", "vision_config": vision}))
    tiny, own = (
        encode_stats([clip], [8.0], geometry, EncodeLimits(), Console(quiet=True), repeats=1)
        for geometry in ("tiny", str(tmp_path))
    )
    assert own.vision_parameters > 2 * tiny.vision_parameters and all(r.encoder for r in own.rows)
    assert all(o.flops > 2 * t.flops for o, t in zip(own.rows, tiny.rows, strict=False))
    assert [r.block.mode for r in own.rows] == [*MODES, "policy"]  # as the folder says that clips are cut


def test_a_policy_that_compares_features_is_measured_with_its_own(tmp_path, decoding_here):
    clip = write_clip(tmp_path / "grey.mp4", seconds=1.0, size=56)
    policy = build_tiny_policy(TinyPolicyConfig(), ScenesConfig(difference="features"), tmp_path / "policy", seed=0)
    found = encode_stats([clip], [8.0], str(policy), EncodeLimits(), Console(quiet=True), repeats=1)
    seconds = {r.block.mode: r.segment_s.median for r in found.rows}
    assert seconds["policy"] > seconds["dynamic_literal"]
    assert as_dict(found)["modes"]["policy"]["difference"] == "features"
