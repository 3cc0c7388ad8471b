"""From what was downloaded to a folder that a run takes: every known set in its published form, counts, verdict."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from rl.config.errors import ConfigError
from rl.config.file import load_config
from rl.published_data.catalogue import SETS, Use
from rl.published_data.preparation import prepare
from tests.envs.data.published import write_json, write_lines, write_parquet

QUIET = Console(quiet=True)
CHOICE = {"question": "Who?", "options": ["A. he", "B. she", "C. it", "D. they"], "answer": "B"}
LINES = "What?\n(A) one\n(B) two\n(C) three\n(D) four"


def publish(name: str, folder: Path) -> tuple[Path, list[str]]:
    """A set of one or two rows as its authors publish it, under `folder`; names of its clips."""
    for below in ("captions", "videomme", "json", "DM-RL-45k", "DM-CoT-74k", "0_30_s_academic_v0_1"):
        (folder / below).mkdir()
    return FORMS[name](folder)


def _nextgqa(folder):
    (folder / "test.csv").write_text(
        "video_id,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
        "4010,100,64,48,why?,sad,3,CW,glad,sad,mad,bad,odd\n"
    )
    write_json(folder / "gsub_test.json", {"4010": {"duration": 1.0, "location": {"3": [[0.1, 0.6]]}, "fps": 8}})
    write_json(folder / "map_vid_vidorID.json", {"4010": "1164/4010"})
    return folder, ["NExTVideo/1164/4010.mp4"]


def _charades(folder):
    (folder / "charades_sta_test.txt").write_text("3MSZA 0.0 0.5##a person sits.\n3MSZA 0.2 0.9##a person stands.\n")
    return folder, ["Charades_v1_480/3MSZA.mp4"]


def _activitynet(folder):
    rows = {"v_a": {"duration": 1.0, "timestamps": [[0, 0.5]], "sentences": ["A man runs."]}}
    write_json(folder / "captions" / "val_1.json", rows)
    return folder, ["v_a.mp4"]


def _rextime(folder):
    row = {"qid": "1", "vid": "a", "question": "Why?", "options": ["x", "y", "z", "w"], "ans": "A", "span": [0, 0.5]}
    write_json(folder / "rextime_val.json", [row])
    return folder, ["qvh/a.mp4"]


def _qvhighlights(folder):
    row = {"qid": 1, "query": "a dog", "duration": 1, "vid": "a_0.0_1.0", "relevant_windows": [[0, 1]]}
    write_lines(folder / "highlight_val_release.jsonl", [row])
    return folder, ["videos/a_0.0_1.0.mp4"]


def _video_mme(folder):
    row = CHOICE | {"question_id": "001-1", "duration": "short", "videoID": "fFjv93ACGo8", "video_id": "001"}
    write_parquet(folder / "videomme" / "test-00000-of-00001.parquet", [row])
    return folder, ["data/fFjv93ACGo8.mp4"]


def _mlvu(folder):
    tasks = ("plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning")
    names = []
    for number, task in enumerate(tasks, start=1):
        row = {"video": "x.mp4", "duration": 1, "question": "Who?", "question_type": task}
        write_json(folder / "json" / f"{number}_{task}.json", [row | {"candidates": ["he", "she"], "answer": "she"}])
        names.append(f"video/{number}_{task}/x.mp4")
    return folder, names


def _video_info(folder, row):
    qa = {"uid": "1", "question": LINES, "answer": "B", "question_type": ["t"], "time_reference": "00:00-00:01"}
    write_lines(folder / "video_info.meta.jsonl", [{"qa": [qa]} | row])
    return folder


def _lvbench(folder):
    return _video_info(folder, {"key": "Cm73ma6Ibcs", "type": "cartoon"}), ["all_videos/Cm73ma6Ibcs.mp4"]


def _motionbench(folder):
    row = {"video_path": "a.mp4", "question_type": "motion", "qa": [{"uid": "1", "question": LINES, "answer": "B"}]}
    return _video_info(folder, row), ["self-collected/a.mp4"]


def _longvideobench(folder):
    row = {"id": "a_0", "video_path": "a.mp4", "question": "Who?", "candidates": ["he", "she"], "correct_choice": 1}
    write_json(folder / "lvb_val.json", [row | {"duration_group": 15}])
    return folder, ["videos/a.mp4"]


def _favor(folder):
    question = {"question": "Who?", "options": ["he", "she"], "correct_answer": "she", "task_type": "AS"}
    write_json(folder / "video_perspective.json", [{"video_name": "a.mp4", "questions": [question]}])
    return folder, ["videos/FAVOR-Bench/a.mp4"]


def _dm_rl(folder):
    row = {"prompt": "<video>\nWhen?", "video": "data/videos/charades_sta/a.mp4", "answer": "0.00 - 0.50", "fps": 2}
    write_lines(folder / "DM-RL-45k" / "charades_fps_grpo.jsonl", [row | {"gt_span_start": 0.0, "gt_span_end": 0.5}])
    return folder, ["videos/charades_sta/a.mp4"]


def _dm_cot(folder):
    reply = "<think>See.<span>0.1 - 0.5</span><fps>2</fps><video>Yes.</think><answer>0.10 - 0.50</answer>"
    turns = [{"from": "human", "value": "<video>\nWhen?"}, {"from": "gpt", "value": reply}]
    write_json(folder / "DM-CoT-74k" / "actnet_fps.json", [{"video": ["data/videos/a.mp4"], "conversations": turns}])
    return folder, ["videos/a.mp4"]


def _llava(folder):
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
    for kind in ("cap", "oe_qa", "mc_qa"):
        file = folder / "0_30_s_academic_v0_1" / f"0_30_s_academic_{kind}_v0_1_processed.json"
        write_json(file, [{"id": "1", "conversations": turns, "video": "academic_source/Charades/a.mp4"}])
    return folder, ["0_30_s_academic_v0_1/academic_source/Charades/a.mp4"]


FORMS = {
    "activitynet_mr": _activitynet,
    "charades_sta": _charades,
    "dm_cot": _dm_cot,
    "dm_rl": _dm_rl,
    "favor_bench": _favor,
    "llava_video_178k": _llava,
    "longvideobench": _longvideobench,
    "lvbench": _lvbench,
    "mlvu": _mlvu,
    "motionbench": _motionbench,
    "nextgqa": _nextgqa,
    "qvhighlights": _qvhighlights,
    "rextime": _rextime,
    "video_mme": _video_mme,
}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "downloaded"
    folder.mkdir()
    return folder


def with_clips(folder, names, clip):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(clip, folder / name)


def test_every_benchmark_that_is_read_and_the_training_sets_can_be_prepared():
    assert set(FORMS) == set(SETS) and sum(known.use is Use.BENCHMARK for known in SETS.values()) == 11
    for known in SETS.values():
        for split in known.splits:
            assert split.rows.source and split.videos.source
            assert split.rows.count is None or split.rows.count > 100
            assert known.use is not Use.BENCHMARK or re.search(r"\d{4}, arXiv \d{4}\.\d{5}$", split.rows.source)


@pytest.mark.parametrize("name", FORMS)
def test_a_set_in_its_published_form_is_found_whole_wherever_its_videos_lie(name, source, clip, tmp_path):
    folder, clips = publish(name, source)
    with_clips(folder, clips, clip)
    made = prepare(name, folder, tmp_path / "out", QUIET, check="none", at_least=0.0)
    assert [(count.usable, count.missing) for count in made.splits] == [(count.rows, 0) for count in made.splits]
    assert made.splits[0].rows >= 1 and not made.problems and made.commands
    for file in (tmp_path / "out").glob("*.yaml"):  # a run takes it
        config = load_config(["configs/real_clips.yaml", str(file)])
        assert config.evaluation.path or config.data.train.path
    assert sorted(path.name for path in source.rglob("*.mp4")) == sorted(name.rpartition("/")[2] for name in clips)


def test_what_is_in_archives_is_unpacked_once_checked_and_counted(source, clip, zipped, tmp_path, capsys):
    _charades(source)
    zipped({"Charades_v1_480/3MSZA.mp4": Path(clip).read_bytes(), "readme.txt": b"hello"}, "Charades_v1_480.zip")
    shutil.move(tmp_path / "source" / "Charades_v1_480.zip", source)
    options = {"console": Console(), "at_least": 0.0, "workers": 1}
    made = prepare("charades_sta", source, tmp_path / "out", **options)
    (count,) = made.splits
    assert (count.rows, count.usable, count.found, count.undecodable) == (2, 2, 1, 0)
    assert (count.authors_rows, count.authors_videos) == (3720, 1334) and count.share == pytest.approx(2 / 3720)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["archives"][0]["files"] == 1 and manifest["archives"][0]["skipped"] == 1
    assert len(manifest["annotations"][0]["sha256"]) == 64
    capsys.readouterr()
    again = prepare("charades_sta", source, tmp_path / "out", **options)
    said = capsys.readouterr().out
    assert again.splits == made.splits and "unpacked before, 1 files" in said and "1 videos were checked before" in said
    assert "looking into" not in said


def test_a_clip_that_cannot_be_decoded_and_one_that_is_missing_are_told_apart(source, clip, tmp_path):
    (source / "charades_sta_test.txt").write_text(
        "GOOD 0.0 0.5##a.\nBROKEN 0.0 0.5##b.\nGONE 0.0 0.5##c.\nGONE 0.1 0.5##d.\nGOOD 0.5 0.1##reversed.\n"
    )
    with_clips(source, ["GOOD.mp4"], clip)
    (source / "BROKEN.mp4").write_bytes(b"<html>404</html>")
    made = prepare("charades_sta", source, tmp_path / "out", QUIET, workers=1, at_least=0.2)
    (count,) = made.splits
    assert (count.rows, count.usable) == (5, 1)
    assert (count.media, count.found, count.missing, count.undecodable) == (3, 2, 1, 1)
    assert not made.usable  # of the authors' 3,720 rows
    told = " ".join(f"{where} {reason}" for where, reason in made.problems)
    assert "charades_sta_test.txt:3" in told and "reversed" in told and "quarantined" in told


def test_two_files_of_one_name_are_not_guessed_between(source, clip, tmp_path):
    _charades(source)
    with_clips(source, ["one/3MSZA.mp4"], clip)
    (source / "two").mkdir()
    (source / "two" / "3MSZA.mp4").write_bytes(Path(clip).read_bytes() + b"\0")
    made = prepare("charades_sta", source, tmp_path / "out", QUIET, check="none", at_least=0.0)
    root = yaml.safe_load((tmp_path / "out" / "charades_sta.yaml").read_text())["evaluation"]["video_root"]
    assert made.splits[0].missing == 1 or Path(root).name in ("one", "two")


def test_what_is_not_there_is_refused_with_what_is_expected(source, tmp_path):
    with pytest.raises(ConfigError, match=r"unknown data set 'nextqa'; known: activitynet_mr, "):
        prepare("nextqa", source, tmp_path / "out", QUIET)
    with pytest.raises(ConfigError, match="no such file or folder; download"):
        prepare("nextgqa", tmp_path / "nowhere", tmp_path / "out", QUIET)
    with pytest.raises(ConfigError, match=r"expected is test\.csv, val\.csv .*--annotation FILE"):
        prepare("nextgqa", source, tmp_path / "out", QUIET)
    with pytest.raises(ConfigError, match="name another folder as --out"):
        prepare("nextgqa", source, source, QUIET)
    with pytest.raises(ConfigError, match="--check"):
        prepare("nextgqa", source, tmp_path / "out", QUIET, check="maybe")


def test_an_annotation_file_of_another_name_is_named(source, clip, tmp_path):
    _charades(source)
    other = (source / "charades_sta_test.txt").rename(source / "my_test.txt")
    with_clips(source, ["3MSZA.mp4"], clip)
    made = prepare("charades_sta", source, tmp_path / "out", QUIET, annotation=other, check="none", at_least=0.0)
    assert made.splits[0].usable == 2


def test_of_two_annotation_files_of_one_split_one_has_to_be_named(source, tmp_path):
    for below in ("a", "b"):
        (source / below).mkdir()
        _charades(source / below)
    with pytest.raises(ConfigError, match=r"2 annotation files of split test .*--annotation FILE"):
        prepare("charades_sta", source, tmp_path / "out", QUIET)


def test_a_copy_from_the_hubs_cache_whose_files_are_links_is_taken(source, clip, tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    _charades(source)
    shutil.copyfile(clip, blobs / "0a1b2c")
    os.symlink(blobs / "0a1b2c", source / "3MSZA.mp4")
    made = prepare("charades_sta", source, tmp_path / "out", QUIET, check="none", at_least=0.0)
    assert made.splits[0].usable == 2 and not (tmp_path / "out" / "videos" / "3MSZA.mp4").is_symlink()


REAL = {  # set -> its annotation below the real data, rows, videos
    "activitynet_mr": ("activitynet_mr/val.json", 17505, 4917),
    "charades_sta": ("charades_sta/charades_sta_test.txt", 3720, 1334),
    "nextgqa": ("nextgqa/test.csv", 5553, 990),
    "mlvu": ("mlvu", 2175, 1242),
}


@pytest.mark.real_data
@pytest.mark.parametrize("name", REAL)
def test_the_authors_own_files_have_the_authors_numbers(name, real_data_dir, clip, tmp_path):
    place, rows, videos = REAL[name]
    source = tmp_path / "downloaded"
    shutil.copytree(origin if (origin := real_data_dir / place).is_dir() else origin.parent, source)
    without = prepare(name, source, tmp_path / "bare", QUIET, check="none")
    count = without.splits[0]
    assert (count.rows, count.usable, count.found) == (rows, 0, 0) and count.missing > 0 and not without.usable
    for path in names_of(name, source):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        if not (source / path).exists():
            os.link(clip, source / path)
    made = prepare(name, source, tmp_path / "out", QUIET, check="none")
    count = made.splits[0]
    assert (count.rows, count.usable, count.authors_rows) == (rows, rows, rows)
    assert count.missing == 0 and made.usable and count.media == videos == count.authors_videos


def names_of(name, source):
    """Where the authors' release has its clips."""
    if name == "activitynet_mr":
        return [f"videos/{video}.mp4" for video in json.loads((source / "val.json").read_text())]
    if name == "charades_sta":
        return [f"{line.split()[0]}.mp4" for line in (source / "charades_sta_test.txt").read_text().splitlines()]
    if name == "nextgqa":
        lines = (f"{split}.csv" for split in ("test", "val"))
        rows = [line for file in lines for line in (source / file).read_text().splitlines()[1:]]
        return [f"NExTVideo/{row.split(',')[0]}.mp4" for row in rows]
    files = sorted(source.glob("*.json"))
    return [f"video/{file.stem}/{row['video']}" for file in files for row in json.loads(file.read_text())]
