"""The command line as a user meets it: help at once, one clear line per mistake, exit codes that mean something."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path

import pytest

from tests.envs.video.clips import render
from tests.rl.report.recorded_run import write_run

pytestmark = pytest.mark.cli

REPOSITORY = Path(__file__).parents[3]
QUICKSTART = str(REPOSITORY / "configs" / "quickstart.yaml")
ROWS = ("data.train.format=dm_rl", "cold_start.enabled=false")


FORKING = """
import gc, json, os, sys
import rl.cli.inspection, rl.cli.main, rl.evaluation.run_evaluation, rl.run.preflight.check, rl.run.train
gc.freeze()
for line in sys.stdin:
    folder, variables, *arguments = json.loads(line)
    child = os.fork()
    if not child:
        for descriptor in (1, 2):
            os.dup2(os.open(f"{folder}/{descriptor}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
        os.environ.update(variables)
        sys.argv = ["dynframe", *arguments]
        code = 0
        try:
            rl.cli.main.main()
        except SystemExit as ended:
            code = ended.code or 0
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # taking down all that was imported would cost seconds
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def forking():
    """A process that has imported everything, and forks for every command: many at the price of one."""
    parent = subprocess.Popen(
        [sys.executable, "-c", FORKING],
        cwd=REPOSITORY,
        env=os.environ | {"COLUMNS": "200", "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield parent
    parent.stdin.close()
    parent.wait(timeout=60)


@pytest.fixture
def forked(forking, tmp_path_factory):
    """As `dynframe`, but for the start of the process."""
    folder = tmp_path_factory.mktemp("said")

    def forked(*arguments, **environment):
        forking.stdin.write(json.dumps([str(folder), environment, *map(str, arguments)]) + "\n")
        forking.stdin.flush()
        code = int(forking.stdout.readline())
        return subprocess.CompletedProcess(arguments, code, *((folder / name).read_text() for name in "12"))

    return forked


def dynframe(*arguments, cwd=REPOSITORY, **environment):
    return subprocess.run(
        [sys.executable, "-m", "rl", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"COLUMNS": "200", "PYTHONPATH": str(REPOSITORY)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "absent.yaml"], "absent.yaml: no such configuration file"),
        (["train", "trainer.steps=3"], "name at least one YAML file"),
        (["train", QUICKSTART, "trainer.steps", "3"], "did you mean trainer.steps=3?"),
        (["train", QUICKSTART, "video.v0.fps=2"], "unknown key 'video.v0.fps'; since 0.4.0 it is 'video.coarse.fps'"),
        (["check", QUICKSTART, "rollout.groupsize=4"], "did you mean 'rollout.group_size'"),
        (["train", QUICKSTART, "policy.path=nowhere"], "policy.path: no folder nowhere"),
        (["train", QUICKSTART, "data.train.format=dm_rl"], "set cold_start.traces: {format: dm_rl, path: ...}"),
        (["train", QUICKSTART, *ROWS, "data.train.path=no.jsonl"], "no such annotation file"),
        (["train", QUICKSTART, *ROWS, "data.train.path=Makefile"], "no usable row (data.train)"),
        (["train", QUICKSTART, "data.train.format=xml", "cold_start.enabled=false"], "unknown data format 'xml'"),
        (["train", QUICKSTART, "data.quickstart.native_fps=7"], "data.quickstart: native_fps must be a whole multiple"),
        (["train", QUICKSTART, "policy.path=rl"], "policy.path=rl: no config.json"),
        (["train", QUICKSTART, "rewards.answer.fn=answr"], "did you mean 'answer'"),
        (["train", QUICKSTART, "rewards.answer.fn=mine.py:score"], "no file"),
        (["train", QUICKSTART, "trainer.steps=0100"], "a leading zero makes a number octal in YAML 1.1: write 100"),
        (
            ["check", QUICKSTART, "output_dir=$HOME/runs"],
            "output_dir: '$HOME/runs': variables of the shell are not read",
        ),
        (["submit", QUICKSTART, "policy.path=/", "--dry-run"], "policy.path: / is on a disk of this machine"),
        (["submit", QUICKSTART, "policy.path=../x", "--dry-run"], "policy.path: ../x lies outside of"),
        (["submit", QUICKSTART, "data.quarantine=data/x.jsonl", "--dry-run"], "not submitted: data.quarantine: data/x"),
        (["train", QUICKSTART, "output_dir=/proc/none"], "or set output_dir to another disk"),
        (["train", QUICKSTART, "resume=/nowhere"], "/nowhere"),
        (["export", "/nowhere", "out"], "neither a run nor a checkpoint"),
        (["encode-stats", "Makefile", "--plot", "tokens"], "--plot tokens: a name must end in the picture's format"),
        (["eval", QUICKSTART, "--run", "/nowhere"], "neither a run nor a checkpoint"),
        (["eval", QUICKSTART, "--best"], "--best is of a run; give --run RUN"),
        (["eval", QUICKSTART, "--run", "a", "--checkpoint", "b"], "give one of --run and --checkpoint"),
        (["eval", QUICKSTART, "evaluation.benchmark=charades_sta"], "where do its annotations lie"),
        (
            ["eval", QUICKSTART, "evaluation.benchmark=charade", "evaluation.path=Makefile"],
            "did you mean 'charades_sta'",
        ),
        (["eval", QUICKSTART, "retrieval.max_calls=0"], "refuses the looks that all traces of the cold start teach"),
        (["compare", "/nowhere"], "no metrics.json in it; give RUN/eval/NAME, or a RUN"),
        (["report", "/nowhere"], "/nowhere: no such run"),
        (["report", "rl"], "not a run"),
    ],
)
def test_a_mistake_is_one_clear_line_and_exit_2(arguments, message, tmp_path, forked):
    where = [f"cache_dir={tmp_path}/cache", "data.quickstart.train_clips=2", "data.quickstart.held_out_clips=1"]
    overrides = where if arguments[0] in ("train", "check", "eval") else []
    if arguments[0] in ("train", "eval") and not any("output_dir" in a for a in arguments):
        overrides = [*overrides, f"output_dir={tmp_path}/runs"]
    answer = forked(*arguments, *overrides)
    assert answer.returncode == 2, answer.stderr
    assert message in " ".join(answer.stderr.split()), answer.stderr
    assert "Traceback" not in answer.stderr


STRANGE = """
import os, sys
def exits(task, trajectory): sys.exit(3)
def huge(task, trajectory): return 10**400
def ends(task, trajectory): os._exit(0)
"""


@pytest.mark.parametrize("command", ["check", "train", "rollout", "eval"])
def test_a_strangers_reward_is_named_whatever_it_does_and_the_next_one_looked_at(command, tmp_path, forked):
    (tmp_path / "strange.py").write_text(STRANGE)
    (tmp_path / "script.py").write_text("import argparse\nargparse.ArgumentParser().parse_args(['--x'])\n")
    rewards = {
        "exits": "strange.py:exits",
        "huge": "strange.py:huge",
        "ends": "strange.py:ends",
        "script": "script.py:f",
    }
    (tmp_path / "run.yaml").write_text(json.dumps({"rewards": {name: {"fn": fn} for name, fn in rewards.items()}}))
    small = [f"cache_dir={tmp_path}/cache", "data.quickstart.train_clips=2", "data.quickstart.held_out_clips=1"]
    answer = forked(command, QUICKSTART, tmp_path / "run.yaml", *small, f"output_dir={tmp_path}/runs")
    told = answer.stdout if command == "check" else answer.stderr
    assert answer.returncode == (3 if command == "check" else 2) and "Traceback" not in answer.stdout + answer.stderr
    for message in (
        "reward 'exits' raised SystemExit: 3",
        "reward 'huge' gave no finite number: returned an integer of 1329 bits",
        "strange.py:ends' has ended its process while it was called (exit code 0; os._exit?)",
        "script.py: SystemExit: 2 at",
    ):
        assert message in " ".join(told.split()), told
    assert all(f"rewards.{name}" in told for name in rewards)


def test_a_cluster_that_does_not_answer_is_a_failure_not_a_mistake():
    answer = dynframe("submit", QUICKSTART, "--address", "http://127.0.0.1:9")
    assert answer.returncode == 1, answer.stderr
    assert "no Ray job server answered at http://127.0.0.1:9" in " ".join(answer.stderr.split())
    assert "Traceback" not in answer.stderr


def test_check_reports_everything_at_once_and_exits_3_if_something_failed(tmp_path, forked):
    small = [f"cache_dir={tmp_path}/cache", "data.quickstart.train_clips=2", "data.quickstart.held_out_clips=1"]
    good = dynframe("check", QUICKSTART, *small, "--json")
    assert good.returncode == 0, good.stdout + good.stderr
    assert json.loads(good.stdout.splitlines()[-1])["passed"] is True
    bad = forked("check", QUICKSTART, *small, "rewards.answer.fn=answr", "policy.path=nowhere", "--json")
    assert bad.returncode == 3
    findings = {f["subject"]: f for f in json.loads(bad.stdout.splitlines()[-1])["findings"]}
    assert findings["rewards.answer"]["level"] == findings["policy"]["level"] == "failed"
    assert findings["rewards.window"]["level"] == "ok"


def test_check_refuses_a_context_that_cannot_hold_the_opening(tmp_path, forked):
    small = [f"cache_dir={tmp_path}/cache", "data.quickstart.train_clips=2", "data.quickstart.held_out_clips=1"]
    answer = forked("check", QUICKSTART, *small, "rollout.engine.max_model_len=100")
    assert answer.returncode == 3 and "raise it, or lower video.coarse.max_frames" in answer.stdout


@pytest.mark.real_data
@pytest.mark.parametrize("model", ["qwen2_5_vl_3b", "qwen2_5_vl_7b", "qwen3_vl_4b", "qwen3_vl_8b"])
def test_the_full_configurations_pass_but_for_the_missing_weights(model, real_data_dir, tmp_path, forked):
    """They fit the GPUs they are written for; whether a disk has room for their checkpoints is the machine's matter."""
    config = REPOSITORY / "configs" / f"sd_grpo_{model}.yaml"
    hardware = ("placement.gpu=h100-80gb", "placement.node_memory_gib=512")
    answer = forked(
        "check", config, f"cache_dir={tmp_path}", *hardware, "--json", DYNFRAME_REAL_DATA=str(real_data_dir)
    )
    findings = json.loads(answer.stdout.splitlines()[-1])["findings"]
    failed = {finding["subject"]: finding["detail"] for finding in findings if finding["level"] == "failed"}
    assert "hf download Qwen/Qwen" in failed.pop("policy")  # tests have no network
    assert failed.keys() <= {"output_dir"}
    memory = [finding["level"] for finding in findings if finding["subject"].startswith("memory, ")]
    assert memory == ["ok", "ok", "ok"]


def test_submit_dry_run_ships_this_folder_and_only_named_variables():
    answer = dynframe("submit", "configs/quickstart.yaml", "trainer.steps=1", "--dry-run")
    assert answer.returncode == 0, answer.stderr
    assert "python -m rl train configs/quickstart.yaml trainer.steps=1" in answer.stdout
    assert "excludes" in answer.stdout and "PATH" not in answer.stdout


def test_doctor_names_versions_and_what_works():
    answer = dynframe("doctor", "--json")
    report = json.loads(answer.stdout.splitlines()[-1])
    subjects = {finding["subject"]: finding for finding in report["findings"]}
    assert {"python", "torch", "ray", "deepspeed", "memory", "vllm imports"} <= subjects.keys()
    assert answer.returncode == (0 if report["passed"] else 3)


def test_report_writes_a_page_and_follows_a_run_until_interrupted(tmp_path):
    run = write_run(tmp_path / "run", tmp_path / "clips", steps=1)
    answer = dynframe("report", run, "--max-mib", "2")
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()  # of what is no terminal: no bars, no escape codes, no blank lines
    assert all(line.strip() for line in lines) and "\x1b" not in answer.stdout
    assert f"{run}/report.html" in answer.stdout and (run / "report.html").stat().st_size < 2 * 2**20
    command = [sys.executable, "-m", "rl", "report", str(run), "--serve", "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    ignoring = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)  # as a shell starts what runs in the background
    with subprocess.Popen(command, cwd=REPOSITORY, text=True, preexec_fn=ignoring, **pipes) as process:
        address = process.stdout.readline().split()[0]
        with urllib.request.urlopen(address, timeout=60) as page:
            assert b'data-live="1"' in page.read()
        process.send_signal(signal.SIGINT)
        said, complaint = process.communicate(timeout=60)
    assert (process.returncode, said.strip(), complaint) == (0, "stopped", "")


def test_a_killed_validation_goes_on_and_says_what_cannot_be_used(tmp_path):
    clips = [render(tmp_path / f"{number}.mp4", frames=40) for number in range(12)]
    clips[7].write_bytes(clips[7].read_bytes()[:200])
    rows = [{"prompt": "<video>\nWhat?", "video": clip.name, "answer": "A"} for clip in clips]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [f"data.{split}={{format: dm_rl, path: {tmp_path}/rows.jsonl}}" for split in ("train", "held_out")]
    command = ("validate-data", QUICKSTART, *sources, "cold_start.enabled=false", f"cache_dir={tmp_path}/cache")
    statuses = tmp_path / "cache" / "validated_clips.jsonl"

    running = subprocess.Popen(
        [sys.executable, "-m", "rl", *command, "--workers", "1"],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    while not (statuses.exists() and b"\n" in statuses.read_bytes()):
        assert running.poll() is None, "it ended without the status of a clip"
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()

    done = dynframe(*command, "--workers", "2", "--json")
    assert done.returncode == 3, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["clips"] == 12 and report["decoded"] < 12
    assert report["splits"] == {split: {"ok": 11, "quarantined": 1} for split in ("train", "held_out")}
    assert len({json.loads(line)["video"] for line in statuses.read_text().splitlines()}) == 12
    assert dynframe("validate-data", QUICKSTART, *sources[:1], "data.held_out.format=nope").returncode == 2


def test_encode_stats_counts_every_mode_on_real_files(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        render(tmp_path / name, frames=50)
    (tmp_path / "broken.mp4").write_text("not a video")

    done = dynframe("encode-stats", tmp_path, "--fps", "2,8", "--count", "--csv", tmp_path / "rows.csv", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert [(total["asked_fps"], total["mode"]) for total in report["totals"]] == [
        (fps, mode)
        for fps in (2.0, 8.0)
        for mode in ("fixed2", "fixed6", "dynamic_literal", "dynamic_budget", "dynamic_adaptive")
    ]
    assert report["skipped"][0]["path"].endswith("broken.mp4")
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 1 + 2 * 2 * 5
