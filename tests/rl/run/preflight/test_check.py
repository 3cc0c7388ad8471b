"""What `dynframe check` and a run's start find out, each alone: rewards, data, context, memory, disk."""

import json
import logging
import math
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from rl.config.errors import ConfigError
from rl.config.file import load_config
from rl.policy.tiny_tokenizer import train_tokenizer
from rl.policy.token_ids import PolicyFilesError
from rl.run.preflight import machine as this_machine
from rl.run.preflight.check import kinds_of_answers, preflight, run_checks
from rl.run.preflight.findings import Level
from rl.run.preflight.machine import available_bytes
from rl.run.preflight.memory import check_plan, plan_memory
from rl.run.preflight.rewards import check_rewards
from rl.run.prepare.policy import count_parameters
from rl.run.prepare.tasks import prepare_tasks
from rl.trajectory import AnswerKind, VideoTask

GIB = 2**30


@pytest.fixture
def silent():
    return Console(quiet=True)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A run of one clip or two on a machine of our own choosing."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    machine(monkeypatch, memory_gib=64, disk_gib=64)
    monkeypatch.setattr(this_machine, "CGROUP", tmp_path / "no_cgroup")
    smallest = tmp_path / "run.yaml"
    smallest.write_text("rewards: {answer: {fn: answer}}\n")
    where = [
        f"output_dir={tmp_path}/runs",
        f"cache_dir={tmp_path}/cache",
        "data.quickstart.train_clips=2",
        "data.quickstart.held_out_clips=1",
        "video.decode_workers=0",
        "video.coarse.fps=1",
    ]
    return lambda *overrides: load_config([smallest], [*where, *overrides])


@pytest.fixture
def user_reward(tmp_path):
    """The override that adds a reward of the user's, from its body."""

    def write(body):
        path = tmp_path / f"reward_{abs(hash(body))}.py"
        path.write_text(
            f"import time\nfrom rl.trajectory import AnswerKind\n\ndef score(task, trajectory):\n    {body}\n"
        )
        return f"rewards.mine.fn={path}:score"

    return write


def machine(monkeypatch, *, memory_gib, disk_gib):
    monkeypatch.setattr(this_machine.psutil, "virtual_memory", lambda: SimpleNamespace(available=memory_gib * GIB))
    monkeypatch.setattr(this_machine.psutil, "disk_usage", lambda _: SimpleNamespace(free=disk_gib * GIB))


def memory_of(config):
    """The only finding of memory: there is no GPU."""
    (finding,) = check_plan(config, plan_memory(config))
    return finding


def found(config, console=None):
    return {finding.subject: finding for finding in run_checks(config, console or Console(quiet=True))}


def test_a_reward_that_hangs_is_named_within_one_deadline(small, user_reward):
    started = time.perf_counter()
    with pytest.raises(ConfigError, match=r"reward 'mine' timed out: no result within 0\.2 s .* in score: time"):
        preflight(small(user_reward("time.sleep(60)"), "scoring.timeout_s=0.2"))
    assert time.perf_counter() - started < 5


def test_a_reward_file_that_hangs_while_it_is_loaded_is_named(small, tmp_path):
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)\n")
    with pytest.raises(ConfigError, match=r"slow\.py: TimeoutError"):
        preflight(small(f"rewards.mine.fn={tmp_path}/slow.py:score", "scoring.timeout_s=0.2"))


def test_a_reward_for_one_kind_of_answer_is_tried_on_that_kind(small, user_reward):
    preflight(small(user_reward("return 1.0 if task.answer_kind is AnswerKind.SPAN else None")))


def test_a_reward_that_never_says_a_number_or_raises_somewhere_is_refused(small, user_reward):
    with pytest.raises(ConfigError, match=r"rewards\.mine: .* returns None on every golden trajectory"):
        preflight(small(user_reward("return None")))
    with pytest.raises(ConfigError, match=r"'mine' raised ZeroDiv.* task golden/open at .*\.py:5 in score: ret"):
        preflight(small(user_reward("return 1 / (task.answer_kind is not AnswerKind.OPEN)")))


def test_too_little_memory_is_refused_with_the_keys_to_lower(small, monkeypatch):
    machine(monkeypatch, memory_gib=1, disk_gib=64)
    with pytest.raises(
        ConfigError,
        match=r"memory, the machine: \d\.\d of 1\.0 GiB \(free here\); largest: .* GiB: close programs, or .*=.* sav",
    ):
        preflight(small())


def test_memory_can_be_given_where_the_estimate_is_wrong_and_little_to_spare_is_a_note(small, monkeypatch):
    machine(monkeypatch, memory_gib=4, disk_gib=64)
    preflight(small("placement.memory_gib=3.9"))  # estimated, it would be refused
    finding = memory_of(small("placement.memory_gib=3.9"))
    assert (finding.level, finding.detail) == (
        Level.NOTE,
        "3.9 of 4.0 GiB (free here); largest: placement.memory_gib 3.9 GiB; less than 25% to spare "
        "(placement.memory_margin)",
    )
    assert memory_of(small("placement.memory_gib=3.9", "placement.memory_margin=0")).level is Level.OK
    with pytest.raises(ConfigError, match=r"4\.1 of 4\.0 GiB \(free here\); largest: placement\.memory_gib 4\.1"):
        preflight(small("placement.memory_gib=4.1"))


def test_values_on_golden_trajectories_are_one_short_line_per_reward(small, user_reward):
    own = "return {AnswerKind.SPAN: 0.123456, AnswerKind.LETTER: 1.0}.get(task.answer_kind)"
    details = {finding.subject: finding.detail for finding in check_rewards(small(user_reward(own)))}
    assert details["rewards.answer"] == "answer on golden trajectories: 1, 0, 0, 1 (letter, span, number, score, open)"
    assert details["rewards.mine"].endswith(": 1, 1, 1, 1 (letter); 0.123, 0.123, 0.123, 0.123 (span)")


def test_gpus_that_this_machine_lacks_are_refused_before_any_work(small, monkeypatch):
    monkeypatch.setattr("rl.run.preflight.machine._lacks_gpus", lambda: True)
    with pytest.raises(ConfigError, match=r"needs 2 GPU and this machine has none: submit it to a cluster"):
        preflight(small("placement.rollout_gpus=1", "placement.learner_gpus=1"))
    preflight(small())  # on CPU it can


def test_memory_of_a_cluster_is_not_measured_here(small, monkeypatch):
    machine(monkeypatch, memory_gib=1, disk_gib=64)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    preflight(small())


def test_a_containers_limit_counts_where_it_is_below_the_machines_memory(tmp_path, monkeypatch):
    machine(monkeypatch, memory_gib=64, disk_gib=64)
    monkeypatch.setattr(this_machine, "CGROUP", tmp_path)
    assert available_bytes() == 64 * GIB  # no such files
    (tmp_path / "memory.current").write_text(f"{3 * GIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon {2 * GIB}\ninactive_file {GIB}\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes() == 64 * GIB
    (tmp_path / "memory.max").write_text(f"{4 * GIB}\n")
    assert available_bytes() == 2 * GIB


def write_weights(folder, *shapes):
    folder.mkdir()
    vision = {"patch_size": 14, "spatial_merge_size": 2, "tokens_per_second": 2}
    config = {"model_type": "qwen2_5_vl", "vision_config": vision, "text_config": {"vocab_size": 768}}
    (folder / "config.json").write_text(json.dumps(config))
    train_tokenizer(768).save(str(folder / "tokenizer.json"))
    header, end = {}, 0
    for i, shape in enumerate(shapes):
        start, end = end, end + 2 * math.prod(shape)
        header[f"w{i}"] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)  # of no size on the disk
    return folder


ROPE = {"mrope_section": [24, 20, 20], "mrope_interleaved": True}
SAID = {  # by a config.json as the hub has it, of what is refused where it is missing
    "qwen2_5_vl": {"model_type": "qwen2_5_vl", "vision_config": {"patch_size": 14, "spatial_merge_size": 2}},
    "qwen3_vl": {
        "model_type": "qwen3_vl",
        "vision_config": {"patch_size": 16, "spatial_merge_size": 2},
        "text_config": {"vocab_size": 768, "rope_scaling": ROPE},
    },
}


@pytest.mark.parametrize(
    ("said", "overrides", "message"),
    [
        (SAID["qwen2_5_vl"], [], "config.json: vision_config has no tokens_per_second, the rate of the clock"),
        (
            SAID["qwen3_vl"] | {"text_config": {"rope_scaling": {"mrope_section": [24, 20, 20]}}},
            [],
            "config.json: text_config.rope_scaling has no mrope_interleaved=true",
        ),
        (SAID["qwen3_vl"] | {"model_type": "qwen3_vl_moe"}, [], "'qwen3_vl_moe' cannot be trained here (its experts"),
        (SAID["qwen3_vl"] | {"model_type": "qwen3_5"}, [], "'qwen3_5' cannot be trained here (its linear attention"),
        (SAID["qwen3_vl"], ["policy.scenes.timestamps=none"], "timestamps=none leaves qwen3_vl without a clock"),
        (
            None,
            ["policy.tiny.family=qwen3_vl", "policy.scenes.timestamps=none"],
            "policy.tiny.family=qwen3_vl: policy.scenes.timestamps=none leaves qwen3_vl without a clock",
        ),
    ],
    ids=["no clock", "axes not told", "mixture of experts", "linear attention", "no times", "no times, tiny"],
)
def test_a_policy_that_would_be_misread_is_refused_before_it_is_converted(small, tmp_path, said, overrides, message):
    folder = write_weights(tmp_path / "stock", [2, 2])
    if said is not None:
        (folder / "config.json").write_text(json.dumps(said))
        overrides = [*overrides, f"policy.path={folder}"]
    policy = found(small(*overrides))["policy"]
    assert policy.level is Level.FAILED and message in policy.detail
    assert not any((tmp_path / "cache").glob("converted*")) and not any((tmp_path / "cache").glob("tiny-*"))


def test_disk_must_hold_every_checkpoint_of_the_policy(small, tmp_path, monkeypatch):
    folder = write_weights(tmp_path / "policy", [1024, 1024, 64], [1024, 1024])
    assert count_parameters(folder) == 65 * 2**20
    keys = (f"policy.path={folder}", "trainer.keep_checkpoints=2")
    machine(monkeypatch, memory_gib=64, disk_gib=4)
    with pytest.raises(ConfigError, match=r"output_dir: .* 4\.0 GiB free; 5\.1 GiB are needed: make room"):
        preflight(small(*keys))  # two kept, the next one, and the best
    with pytest.raises(ConfigError, match=r"output_dir: .* 4\.0 GiB free; 4\.0 GiB are needed: make room"):
        preflight(small(*keys, "trainer.best_metric=''"))
    machine(monkeypatch, memory_gib=64, disk_gib=6)
    preflight(small(*keys))
    with pytest.raises(ConfigError, match=r"7\.1 GiB are needed.*keep_every"):  # and two for good, of 1 GiB each
        preflight(small(*keys, "trainer.steps=100", "trainer.keep_every=50"))


def test_weights_that_were_not_downloaded_are_named(tmp_path):
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(PolicyFilesError, match=r"model\.safetensors: cannot be read: not a safetensors file"):
        count_parameters(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "is_told"),
    [
        ((), False),  # the quickstart's own clips
        (("data.train.format=dm_rl",), True),
        (("data.held_out.format=charades_sta",), True),
        (("data.train.format=dm_rl", "video.decode_workers=1"), False),
    ],
)
def test_decoding_strangers_clips_without_limits_is_worth_a_note(small, overrides, is_told):
    findings = found(small("policy.path=nowhere", *overrides))
    assert ("video.decode_workers" in findings) is is_told
    if is_told:
        told = findings["video.decode_workers"]
        assert told.level is Level.NOTE and "without a deadline or a limit of memory" in told.detail


def test_one_failure_does_not_hide_the_next(small, tmp_path, monkeypatch):
    machine(monkeypatch, memory_gib=1, disk_gib=0.1)
    findings = found(small("data.quickstart.native_fps=7", "rewards.answer.fn=answr", f"policy.path={tmp_path}"))
    wrong = {subject for subject, finding in findings.items() if finding.level is Level.FAILED}
    assert wrong == {"rewards.answer", "data.train", "data.held_out", "policy", "memory, the machine", "output_dir"}
    assert "native_fps must be a whole multiple" in findings["data.train"].detail
    assert findings["token budget"].level is Level.NOTE


def test_a_frame_smaller_than_one_token_is_a_finding_of_the_token_budget(small):
    finding = found(small("video.coarse.max_pixels=10"))["token budget"]
    assert finding.level is Level.FAILED and "max_pixels must be at least" in finding.detail


def test_the_token_budget_counts_system_and_instructions_and_says_how_many_videos_it_saw(small):
    def opening(*overrides):
        finding = found(small(*overrides))["token budget"]
        assert finding.level is not Level.FAILED and "(3 of 3 videos looked at)" in finding.detail
        return int(finding.detail.removeprefix("initial prompt up to ").split(",")[0])

    bare = opening()
    assert opening("prompt.instructions='Look again where you must.'") > bare + 5
    assert opening("prompt.system='You watch videos.'") > bare + 5


def test_the_token_budget_joins_the_longest_question_with_the_longest_video(small, silent, tmp_path):
    rows = []
    for seconds, question in ((4.0, "What colour flashes? " * 20), (16.0, "What?")):
        prepare_tasks(small(f"data.quickstart.duration_s={seconds}"), "train", silent)
        (world,) = set((tmp_path / "cache").glob("quickstart-*")) - {row["world"] for row in rows}
        row = json.loads((world / "train.jsonl").read_text().splitlines()[0])
        rows.append(row | {"world": world, "video": f"{world.name}/{row['video']}", "prompt": f"<video>\n{question}"})

    def opening(*chosen):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row | {"world": ""}) + "\n" for row in chosen))
        source = f"{{format: dm_rl, path: {path}, video_root: {tmp_path / 'cache'}}}"
        finding = found(small(f"data.train={source}", f"data.held_out={source}"))["token budget"]
        return int(finding.detail.removeprefix("initial prompt up to ").split(",")[0])

    assert opening(*rows) > max(opening(rows[0]), opening(rows[1]))


def test_every_row_left_out_is_in_a_file_with_its_reason(small, silent, tmp_path, caplog):
    config, rows = with_bad_rows(small, silent, tmp_path)
    with caplog.at_level(logging.WARNING):
        assert len(prepare_tasks(config, "train", silent).tasks) == 1
    kept = [json.loads(line) for line in (tmp_path / "cache" / "rejected_rows-train.jsonl").read_text().splitlines()]
    assert [row["line"] for row in kept] == list(range(2, 14)) and all(row["file"] == str(rows) for row in kept)
    assert "12 rows left out, each with its reason in" in caplog.text


def test_a_row_that_two_splits_leave_out_is_logged_once(small, silent, tmp_path, caplog):
    config, rows = with_bad_rows(small, silent, tmp_path)
    config = replace(config, data=replace(config.data, held_out=config.data.train))
    with caplog.at_level(logging.WARNING):
        for split in ("train", "held_out", "train"):
            prepare_tasks(config, split, silent)
    assert caplog.text.count(f"{rows}:2: row left out") == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.train={format: dm_rl, path: absent.jsonl}"], r"^data\.train: absent\.jsonl: no such annotation file"),
        (["data.held_out={format: cvs}"], r"^data\.held_out: unknown data format 'cvs'; did you mean 'csv'"),
        (
            ["cold_start.enabled=true", "cold_start.traces={format: dm_cot}"],
            r"^cold_start\.traces: path is empty; name",
        ),
        (["data.quickstart.native_fps=7"], r"^data\.quickstart: native_fps must be"),
    ],
)
def test_missing_data_are_refused_before_anything_is_rendered_or_written(small, tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        preflight(small(*overrides))
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_bad_rows_are_refused_where_the_run_says_so(small, silent, tmp_path):
    config, rows = with_bad_rows(small, silent, tmp_path, "data.bad_rows=refuse")
    with pytest.raises(ConfigError, match=rf"{rows}:2: .*12 bad rows.*data\.bad_rows=skip"):
        prepare_tasks(config, "train", silent)


def with_bad_rows(small, silent, tmp_path, *overrides):
    """A data set of one good row and twelve that name no video."""
    prepare_tasks(small(), "train", silent)
    world = next((tmp_path / "cache").glob("quickstart-*"))
    good = json.loads((world / "train.jsonl").read_text().splitlines()[0])
    rows = tmp_path / "rows.jsonl"
    bad = [{key: "absent.mp4" if key == "video" else value for key, value in good.items()}] * 12
    rows.write_text("".join(json.dumps(row) + "\n" for row in (good, *bad)))
    keys = ("data.train.format=dm_rl", f"data.train.path={rows}", f"data.train.video_root={world}")
    return small(*keys, *overrides), rows


def test_answers_are_counted_by_kind():
    def of_kind(kind):
        return VideoTask("t", "/a.mp4", "?", "x", AnswerKind(kind))

    assert kinds_of_answers([*map(of_kind, ["letter"] * 3 + ["span"])]) == "3 letters, 1 span, 0 numbers, 0 open"
    assert kinds_of_answers([*map(of_kind, ["score", "open"])]) == "0 letters, 0 spans, 0 numbers, 1 score, 1 open"
