"""The quickstart world keeps its promise: coarse frames never show the detail, the right look always does."""

import collections
import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from envs.synthetic.clip import DETAIL_COLOURS, TEMPO_HUES, lowest_sufficient_fps
from envs.synthetic.world import QuickstartWorld, cold_start_traces, render_world, shown_answer, world_rows
from envs.tools.rules import RetrievalRules
from envs.tools.span_fps import frame_times, parse_call
from rl.trajectory import RetrievalCall

pytestmark = pytest.mark.thorough

PROJECT = Path(__file__).parents[3]
KINDS = ("colour", "count", "order")
NAMED = ("57525ea096ef", "29534586844e", "a71b144b74b1")  # rows of both splits and traces, by SHA-256
WORLD = QuickstartWorld(train_clips=24, held_out_clips=12, seed=3, question_kinds=KINDS)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return render_world(WORLD, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def clips(files):
    """(row, every decoded frame) of the training split."""
    rows = [json.loads(line) for line in files.train_jsonl.read_text().splitlines()]
    return [(row, decode_all(files.folder / row["video"])) for row in rows]


def decode_all(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def colour_in_the_middle(pixels_HWC):
    """Which detail colour fills the middle, or None: nearest prototype, and near."""
    middle_C = pixels_HWC[16:40, 16:40].reshape(-1, 3).mean(axis=0)
    distance, name = min((np.linalg.norm(middle_C - rgb), name) for name, rgb in DETAIL_COLOURS.items())
    return name if distance < 40 else None


def frames_at(frames, times_s):
    return [frames[int(time_s * WORLD.native_fps + 1e-6)] for time_s in times_s]


def test_a_world_of_before_keeps_its_name_its_rows_and_its_traces():
    """What options added later must not change: caches and fixed-seed numbers hang on it."""
    world = QuickstartWorld()
    made = world_rows(world, "train"), world_rows(world, "held_out"), traces_of(world)
    named = [hashlib.sha256(json.dumps(one).encode()).hexdigest()[:12] for one in made]

    assert (world.fingerprint, *named) == ("59ca74c6dfa4", *NAMED)


def traces_of(world, looks=1, jitter=(1.0, 3)):
    return cold_start_traces(world_rows(world, "train"), *jitter, seed=0, traces_per_row=4, looks=looks)


def retrieval_times(start_s, end_s, fps, phase_s=0.0):
    """Floor(window * rate) times, in centiseconds."""
    count = int((end_s - start_s) * fps + 1e-9)
    return [int(100 * (start_s + phase_s) + 100 * i / fps) / 100 for i in range(count)]


@pytest.mark.parametrize("coarse_fps", [1, 2])
def test_coarse_frames_never_show_the_detail(clips, coarse_fps):
    for _, frames in clips:
        coarse = frames_at(frames, np.arange(0, WORLD.duration_s, 1 / coarse_fps))
        assert {colour_in_the_middle(pixels) for pixels in coarse} == {None}


def test_coarse_frames_show_the_event(clips):
    for row, frames in clips:
        lit = [pixels[:4].mean() > 110 for pixels in frames_at(frames, range(8))]
        assert lit == [row["gt_span_start"] <= second < row["gt_span_end"] for second in range(8)]


def test_the_evidence_window_at_the_evidence_rate_shows_every_flash_in_order(clips):
    for row, frames in clips:
        looked = frames_at(frames, retrieval_times(row["gt_span_start"], row["gt_span_end"], row["fps"]))
        seen = [colour_in_the_middle(pixels) for pixels in looked]
        flashes = [name for before, name in zip([None, *seen], seen, strict=False) if name and name != before]
        assert flashes == [colour for _, _, colour in row["flashes_s"]]


def test_a_grid_at_the_evidence_rate_shows_every_flash_at_any_phase(clips):
    for row, frames in clips:
        for phase_s in np.arange(0, 1 / row["fps"], 0.01):
            times_s = retrieval_times(0, WORLD.duration_s - 1, row["fps"], phase_s)
            for start_s, end_s, colour in row["flashes_s"]:
                if end_s <= times_s[-1]:
                    shown = frames_at(frames, [t for t in times_s if start_s - 1e-6 <= t < end_s - 1e-6])
                    assert shown and all(colour_in_the_middle(pixels) == colour for pixels in shown)


@pytest.mark.parametrize(("flash_frames", "fps"), [(5, 3), (4, 4), (3, 4), (2, 7)])
def test_lowest_sufficient_fps(flash_frames, fps):
    assert lowest_sufficient_fps(flash_frames, native_fps=12) == fps

    one_less = retrieval_times(0, 100, fps - 1)
    assert max(np.diff(one_less)) > flash_frames / 12  # a grid one slower can step over the flash


def test_a_flash_of_one_frame_has_no_sufficient_integer_rate():
    with pytest.raises(ValueError, match="too short"):
        lowest_sufficient_fps(1, native_fps=12)


def test_letters_and_choices_are_balanced():
    rows = world_rows(QuickstartWorld(train_clips=96, question_kinds=KINDS), "train")
    for kind in KINDS:
        asked = [row for row in rows if row["kind"] == kind]
        assert set(collections.Counter(row["answer"] for row in asked).values()) == {8}
        assert set(collections.Counter(right_choice(row) for row in asked).values()) == {8}


def right_choice(row):
    return row["options"]["ABCD".index(row["answer"])]


def test_the_tempo_is_told_by_the_border_and_not_by_the_answer(clips):
    for row, frames in clips:
        red, green, _ = frames_at(frames, [row["gt_span_start"]])[0][:6].reshape(-1, 3).mean(axis=0)
        hue = "cyan" if red < 120 else "magenta" if green < 120 else "white"
        assert {"cyan": 3, "magenta": 4, "white": 7}[hue] == row["fps"]


def test_options_can_be_left_in_order():
    rows = world_rows(QuickstartWorld(train_clips=8, shuffle_options=False), "train")
    assert {tuple(row["options"]) for row in rows} == {tuple(DETAIL_COLOURS)}


def test_the_same_seed_gives_the_same_bytes(files, tmp_path):
    again = render_world(WORLD, tmp_path, workers=2)

    assert again.train_jsonl.read_bytes() == files.train_jsonl.read_bytes()
    for video in sorted(files.folder.glob("*/*.mp4")):
        assert (again.folder / video.relative_to(files.folder)).read_bytes() == video.read_bytes()


def test_the_bytes_do_not_depend_on_what_memory_held_before(tmp_path):
    """Fresh memory filled with different values must not reach the files: encoders have read it unwritten."""
    script = (
        "import sys; from envs.synthetic.world import *\n"
        "world = QuickstartWorld(24, 12, seed=3, question_kinds=('colour', 'count', 'order'))\n"
        "render_world(world, sys.argv[1])"
    )
    rendered = {}
    for filler in ("0", "1", "85"):
        environment = {**os.environ, "MALLOC_PERTURB_": filler}
        subprocess.run([sys.executable, "-c", script, str(tmp_path / filler)], check=True, cwd=PROJECT, env=environment)
        videos = sorted((tmp_path / filler).rglob("*.mp4"))
        rendered[filler] = {f"{video.parent.name}/{video.name}": video.read_bytes() for video in videos}
    assert len(rendered["0"]) == 36 and rendered["0"] == rendered["1"] == rendered["85"]


def test_splits_share_no_clip(files):
    contents = [video.read_bytes() for video in files.folder.glob("*/*.mp4")]
    assert len(set(contents)) == WORLD.train_clips + WORLD.held_out_clips
    assert world_rows(QuickstartWorld(seed=1), "train") != world_rows(QuickstartWorld(seed=2), "train")


def test_a_rendered_world_is_found_again_and_nothing_half_made_is_left(files):
    before = sorted(path.name for path in files.folder.parent.iterdir())
    ticks = []

    assert render_world(WORLD, files.folder.parent, progress=lambda *tick: ticks.append(tick)) == files
    assert ticks == [] and before == [files.folder.name]


def test_progress_counts_every_clip(tmp_path):
    ticks = []
    render_world(QuickstartWorld(train_clips=2, held_out_clips=1), tmp_path, progress=lambda *tick: ticks.append(tick))
    assert ticks == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"native_fps": 12.5}, "whole multiple"),
        ({"native_fps": 6.0}, "at least 4 times"),
        ({"question_kinds": ("smell",)}, "smell"),
        ({"size": 55}, "even"),
        ({"duration_s": 7.5}, "coarse intervals"),
        ({"wrong_labels": 1.5}, "a share, 0..1, got 1.5"),
        ({"look_frames": 6}, "0 or at least 7"),
    ],
)
def test_an_impossible_world_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        QuickstartWorld(**wrong)


def test_worlds_without_later_options_have_the_names_they_always_had():
    assert QuickstartWorld().fingerprint == "59ca74c6dfa4"
    everything = QuickstartWorld(24, 12, seed=3, question_kinds=(*KINDS, "warmth"))
    assert everything.fingerprint == "6f6e97614b43"
    assert QuickstartWorld(wrong_labels=0.1).fingerprint != QuickstartWorld().fingerprint


@pytest.mark.parametrize("kind", ["colour", "warmth"])
def test_wrong_labels_are_a_share_of_the_training_annotations_and_nested(kind):
    worlds = [QuickstartWorld(300, 60, question_kinds=(kind,), wrong_labels=share) for share in (0.0, 0.1, 0.3)]
    right, few, many = ([row["answer"] for row in world_rows(world, "train")] for world in worlds)

    wrong_in_few, wrong_in_many = ({i for i in range(300) if answers[i] != right[i]} for answers in (few, many))
    assert 0.06 < len(wrong_in_few) / 300 < 0.14 and 0.24 < len(wrong_in_many) / 300 < 0.36
    assert wrong_in_few < wrong_in_many and all(few[i] == many[i] for i in wrong_in_few)
    assert set(few) == set(right)  # never a letter without a choice
    assert len({json.dumps(world_rows(world, "held_out")) for world in worlds}) == 1


def test_events_fit_into_one_look_where_looks_are_limited():
    limited = world_rows(QuickstartWorld(look_frames=8), "train")
    lengths = {(row["fps"], row["gt_span_end"] - row["gt_span_start"]) for row in limited}

    assert lengths == {(3, 2.0), (4, 2.0), (7, 1.0)}  # 6, 8 and 7 frames
    for row in limited:
        asked = (row["gt_span_start"], row["gt_span_end"])
        assert shown_answer(row, *asked, row["fps"], look_frames=8) == right_choice(row)
    whole = [shown_answer(row, 0.0, 8.0, 10, look_frames=8) for row in limited]
    assert not any(whole)  # a frame a second: that is what coarse frames show


def test_beyond_the_limit_of_a_look_its_frames_are_those_of_a_granted_call():
    rules = RetrievalRules(max_fps=10.0, min_window_s=0.1, max_frames=8)
    call = parse_call("<span>1.3 - 5.0</span><fps>7</fps>", duration_s=8.0, native_fps=12.0, rules=rules)
    row = {"kind": "order"}
    for time_s in frame_times(call):
        shown = [[time_s, time_s + 1e-3, "red"]]
        assert shown_answer(row | {"flashes_s": shown}, 1.3, 5.0, 7, look_frames=8) == "red"


def test_who_has_seen_nothing_looks_again_up_to_the_limit():
    rows = world_rows(QuickstartWorld(), "train")
    once, thrice = (cold_start_traces(rows, 1.0, 2, seed=0, traces_per_row=2, looks=looks) for looks in (1, 3))
    said = [trace["conversations"][1]["value"] for trace in thrice]

    looks = collections.Counter(text.count("<video>") for text in said)
    assert set(looks) == {1, 2, 3} and looks[1] > looks[2]
    for text in said:
        *before, last = text.split("<video>")[1:]
        assert all(part.startswith("I see nothing.Look closer.<span>") for part in before)
        assert len(before) == 2 or not last.startswith("I see nothing.")
    assert once[0] == thrice[0] or "I see nothing." in once[0]["conversations"][1]["value"]


def test_shifted_windows_come_too_early_on_average_too():
    rows = [row for row in world_rows(QuickstartWorld(), "train") if row["gt_span_start"] >= 2]
    traces = cold_start_traces(rows, 0.5, 0, seed=0, window_shift_s=1.5)

    starts_s = [float(trace["conversations"][1]["value"].split("<span>")[1].split(" ")[0]) for trace in traces]
    early_s = [row["gt_span_start"] - start_s for row, start_s in zip(rows, starts_s, strict=True)]
    assert np.mean(early_s) == pytest.approx(1.5, abs=0.1)


def test_who_misreads_takes_a_choice_for_the_next_one():
    rows = world_rows(QuickstartWorld(200), "train")
    said = [t["conversations"][1]["value"] for t in cold_start_traces(rows, 0.0, 0, seed=0, misread=0.6)]

    seen = [text.partition("I see ")[2].partition(".")[0] for text in said]
    wrong = [(right_choice(row), colour) for row, colour in zip(rows, seen, strict=True) if colour != right_choice(row)]
    assert 0.5 < len(wrong) / len(rows) < 0.7
    assert set(wrong) == {("blue", "green"), ("green", "red"), ("red", "yellow"), ("yellow", "blue")}
    for row, text, colour in zip(rows, said, seen, strict=True):
        assert row["options"]["ABCD".index(text[-10])] == colour  # it answers what it takes it for


def test_traces_answer_what_their_frames_show(clips):
    rows = [row for row, _ in clips]
    traces = cold_start_traces(rows, window_jitter_s=0.0, fps_jitter=0, seed=0)
    for row, trace in zip(rows, traces, strict=True):
        human, gpt = (turn["value"] for turn in trace["conversations"])
        window = f"<span>{row['gt_span_start']:.1f} - {row['gt_span_end']:.1f}</span><fps>{row['fps']}</fps>"
        assert human == row["prompt"] and human.startswith("<video>\n") and trace["video"] == [row["video"]]
        assert gpt == (
            f"<think>Look closer.{window}<video>I see {right_choice(row)}.</think><answer>{row['answer']}</answer>"
        )


@pytest.mark.parametrize(
    ("duration_s", "coarse_fps", "native_fps"),
    [(6.25, 4.0, 48), (0.75, 4.0, 48), (22 / 3, 3.0, 60), (1.0, 3.0, 60), (8.0, 1.0, 12)],
)
def test_jittered_looks_stay_in_the_clip_and_are_written_as_it_has_them(duration_s, coarse_fps, native_fps):
    world = QuickstartWorld(8, 1, duration_s, native_fps, coarse_fps=coarse_fps, question_kinds=("colour", "order"))
    rows = world_rows(world, "train")
    for trace in cold_start_traces(rows, window_jitter_s=1.0, fps_jitter=2, seed=0, traces_per_row=8):
        text = trace["conversations"][1]["value"].partition("<video>")[0]
        rules = RetrievalRules(max_fps=100.0, min_window_s=0.0, max_frames=10_000)
        call = parse_call(text, duration_s=duration_s, native_fps=native_fps, rules=rules)
        assert isinstance(call, RetrievalCall) and call.clamped == (), text


def test_jittered_traces_leave_something_to_learn():
    rows = world_rows(QuickstartWorld(), "train")
    traces = cold_start_traces(rows, window_jitter_s=0.5, fps_jitter=2, seed=0, traces_per_row=4)
    blind = [trace for trace in traces if "I see nothing." in trace["conversations"][1]["value"]]
    letters = collections.Counter(trace["conversations"][1]["value"][-10] for trace in blind)

    assert 0.1 < len(blind) / len(traces) < 0.4
    assert all(0.15 < letters[letter] / len(blind) < 0.35 for letter in "ABCD")
    assert traces == cold_start_traces(rows, window_jitter_s=0.5, fps_jitter=2, seed=0, traces_per_row=4)


def test_what_is_shown_is_what_the_pixels_show(clips):
    """The trace's idea of visibility agrees with decoded frames, for windows and rates of every kind."""
    rng = np.random.default_rng(0)
    for row, frames in clips:
        start_s = round(float(rng.uniform(0, 6)), 1)
        end_s, fps = start_s + 1.5, int(rng.integers(1, 13))
        looked = frames_at(frames, retrieval_times(start_s, end_s, fps))
        assert (shown_answer(row, start_s, end_s, fps) is not None) == any(map(colour_in_the_middle, looked))


class TestBrevities:
    """Rates are listed: each detail is as brief as its rate has to be."""

    RATES = (1.5, 2.0, 3.0, 5.0, 8.0, 12.0)
    WORLD = QuickstartWorld(18, 6, native_fps=24, detail_fps=RATES, shuffle_options=False)

    def test_its_rate_shows_a_detail_at_any_phase_and_the_next_lower_one_does_not(self):
        missed = collections.Counter()
        for row in world_rows(self.WORLD, "train") + world_rows(self.WORLD, "held_out"):
            (flash,) = row["flashes_s"]
            for phase_cs in range(0, round(100 / row["fps"])):
                assert shows(flash, row["gt_span_start"] - 1 + phase_cs / 100, row["fps"])
                lower = ([1.0, *self.RATES])[self.RATES.index(row["fps"])]
                missed[row["fps"]] += not shows(flash, row["gt_span_start"] - 1 + phase_cs / 100, lower)
        assert set(missed) == set(self.RATES) and min(missed.values()) > 0

    def test_the_evidence_window_at_the_evidence_rate_is_a_look_that_shows_it(self):
        rules = RetrievalRules(max_fps=12.0)
        for row in world_rows(self.WORLD, "train"):
            asked = f"<span>{row['gt_span_start']} - {row['gt_span_end']}</span><fps>{row['fps']:g}</fps>"
            call = parse_call(asked, duration_s=8.0, native_fps=24.0, rules=rules)
            (start_s, end_s, _) = row["flashes_s"][0]
            assert call.num_frames == 2 * row["fps"]
            assert any(start_s <= time_s < end_s for time_s in frame_times(call))

    def test_coarse_frames_show_the_hue_and_never_the_detail(self, tmp_path):
        files = render_world(self.WORLD, tmp_path)
        for row in world_rows(self.WORLD, "train"):
            coarse = decode_all(files.folder / row["video"])[::24]
            lit = coarse[round(row["gt_span_start"])][:6].reshape(-1, 3).mean(axis=0)
            nearest = min(range(6), key=lambda i: np.linalg.norm(lit - TEMPO_HUES[i]))
            assert self.RATES[nearest] == row["fps"]
            assert {colour_in_the_middle(pixels) for pixels in coarse} == {None}
            assert row["gt_span_end"] - row["gt_span_start"] == 2.0  # the window tells nothing of the rate

    def test_a_jitter_over_all_rates_tells_nothing_of_the_right_one(self):
        world = QuickstartWorld(96, 1, native_fps=24, detail_fps=self.RATES)
        rows, rates_of = world_rows(world, "train"), collections.defaultdict(collections.Counter)
        for index, trace in enumerate(traces_of(world, jitter=(1.0, 12))):
            asked = trace["conversations"][1]["value"].partition("<fps>")[2].partition("</fps>")[0]
            rates_of[rows[index // 4]["fps"]][float(asked)] += 1
        for asked in rates_of.values():
            assert set(asked) == set(self.RATES) and max(asked.values()) < 0.4 * asked.total()
        near = traces_of(world, jitter=(0.0, 1))
        assert "<fps>3</fps>" in json.dumps(near) and "<fps>12</fps>" in json.dumps(near)

    def test_who_sees_nothing_looks_again_more_densely(self):
        texts = [trace["conversations"][1]["value"] for trace in traces_of(self.WORLD, looks=3, jitter=(1.0, 12))]
        looks = collections.Counter(text.count("<video>") for text in texts)
        assert set(looks) == {1, 2, 3}
        for text in texts:
            before, *_, last = text.split("Look closer.")[1:] if text.count("<video>") > 1 else ["", text]
            rates = [float(part.partition("</fps>")[0]) for part in text.split("<fps>")[1:]]
            assert all(b > a or b == 12.0 for a, b in itertools.pairwise(rates))
            assert "I see nothing." in before or text.count("<video>") == 1
            assert "</think><answer>" in last

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"detail_fps": (3, 2)}, "ascending"),
            ({"detail_fps": (1.5, 2, 2.5, 3, 4, 5, 6)}, "at most 6"),
            ({"detail_fps": (1, 2)}, "above coarse_fps"),
            ({"detail_fps": (2, 30)}, "at most native_fps"),
            ({"detail_fps": (1.6, 2)}, "multiple of 0.5"),
            ({"detail_fps": (2, 3), "question_kinds": ("colour", "count")}, "kind count"),
        ],
    )
    def test_rates_no_detail_can_need_are_refused(self, wrong, message):
        with pytest.raises(ValueError, match=message):
            QuickstartWorld(native_fps=24, **wrong)


def shows(flash, first_s, fps):
    """Whether a grid that begins before the flash has a frame on it: times as whole thousandths of a frame gap."""
    start_s, end_s, _ = flash
    times_s = [first_s + i / fps for i in range(round(4 * fps))]
    return any(start_s - 1e-9 <= time_s < end_s - 1e-9 for time_s in times_s)
