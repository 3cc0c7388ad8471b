"""A whole run, small and real: clips, vLLM, Ray, DeepSpeed; resumed, exported, compared, submitted."""

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator

from rl.fault_injection.run_process import ProcessTree
from rl.monitoring.panels import SECTIONS
from tests.calibration import within
from tests.canary import SECRETS, holding_a_secret, is_loopback, sockets_of
from tests.prometheus import MISSING, Monitor, needs_prometheus
from tests.proof_run import TURN, order_of_turns
from tests.terminal import strange_lines
from tests.wandb_file import artifacts_of, config_of, history_of, stored

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.deepspeed]

REPOSITORY = Path(__file__).parents[1]
SMALL = (
    "configs/quickstart.yaml",
    "data.quickstart.train_clips=24",
    "data.quickstart.held_out_clips=8",
    "cold_start.steps=90",
    "cold_start.batch_size=8",
    "learner.num_ranks=1",
    "rollout.num_workers=1",
    "rollout.tasks_per_step=2",
    "rollout.group_size=4",
    "trainer.eval_tasks=4",
    "trainer.save_every=2",
    "placement.dashboard=false",
)

RANKS = ("learner.num_ranks=2",)  # of the run that most is asked about


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


def dynframe(home, command, *overrides, timeout=420):
    answer = subprocess.run(
        command_line(home, command, *overrides),
        cwd=REPOSITORY,
        env=os.environ | {"COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
    assert command != "train" or strange_lines(answer.stdout + answer.stderr) == []
    return answer.stdout


def command_line(home, command, *overrides):
    places = (f"output_dir={home}/runs", f"cache_dir={home}/cache")
    return [sys.executable, "-m", "rl", command, *SMALL, *places, *overrides]


def steps_of(home, name):
    lines = [json.loads(line) for line in (home / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "seconds/step" in line}


def records_of(home, name, step, folder="trajectories"):
    path = home / "runs" / name / folder / f"step_{step:06d}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts_of(home, name, step):
    return [record["text"] for record in records_of(home, name, step)]


@pytest.fixture(scope="module")
def monitor(home):
    """Prometheus beside the first run, or None where there is none; and the folder in which that run starts its Ray."""
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # short: paths of Unix sockets end at 107 bytes
    beside = None if MISSING else Monitor(home / "prometheus", folder)
    yield beside, folder
    if beside is not None:
        beside.stop()
        beside.tree.kill()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def listening(home, monitor):
    """Three steps in one go, in an environment full of secrets; the first run also makes clips, policy and cold start,
    which the others find cached.

    Yields:
        Who listened where meanwhile, (address, port) -> name; and what the dashboard answered who had no token.
    """
    steps = ("name=straight", *RANKS, "trainer.steps=3", "trainer.profile_steps=[2]", "placement.dashboard=true")
    steps += ("logging.wandb=offline",)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | SECRETS
    environment |= {"COLUMNS": "160", "RAY_TMPDIR": str(monitor[1])}
    environment["RAY_metrics_report_interval_ms"] = "1000"  # by default what a run of seconds says would come too late
    found, answers, deadline = {}, {}, time.monotonic() + within(420)
    with (home / "straight.log").open("wb") as said:
        command = command_line(home, "train", *steps)
        running = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=said, stderr=subprocess.STDOUT)
        try:
            while running.poll() is None:
                assert time.monotonic() < deadline, (home / "straight.log").read_text()[-3000:]
                found |= sockets_of(running.pid)
                answers |= {url: status for url in dashboards_in(home / "straight.log") if (status := asked(url))}
                time.sleep(2)  # between two looks; the run itself is what is waited for
        finally:
            running.kill()
    assert running.returncode == 0, (home / "straight.log").read_text()[-3000:]
    return found, answers


def dashboards_in(output):
    """The job servers of the dashboards that a run has named."""
    return [f"{url}/api/jobs/" for url in re.findall(r"http://127\.0\.0\.1:\d+", output.read_text())]


def asked(url):
    """The status that is answered without a token; None: nobody answers."""
    try:
        return urllib.request.urlopen(url, timeout=5).status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@pytest.fixture(scope="module")
def straight(home, listening):
    """What that run has printed."""
    said = (home / "straight.log").read_text()
    assert strange_lines(said) == []
    return said


def test_a_run_says_what_was_learned_and_leaves_everything_behind(home, straight):
    run = home / "runs" / "straight"
    assert "held-out answer accuracy" in straight and str(run) in straight
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 3 and summary["policy_version"] == 3
    assert summary["held_out"]["before"]["tasks"] == summary["held_out"]["after"]["tasks"] == 4
    assert "\n  activation_checkpointing: none\n" in (run / "config.yaml").read_text()  # what auto has come to
    curves = EventAccumulator(str(run / "tensorboard"), size_guidance={IMAGES: 0}).Reload()
    shown = {tag: [image.step for image in curves.Images(tag)] for tag in curves.Tags()[IMAGES]}
    steps = {"held_out": [0, 3], "training": [1]}
    assert shown == {f"samples/{of}/{index}": steps[of] for of in steps for index in (0, 1)}
    assert "samples/held_out/table/text_summary" in curves.Tags()["tensors"]
    assert [point.step for point in curves.Scalars("reward/sampling")] == [1, 2, 3]
    assert [path.name for path in sorted((run / "checkpoints").glob("step_*"))] == ["step_00000002", "step_00000003"]


def test_what_wandb_keeps_of_a_run_is_what_its_metrics_say(home, straight):
    run = home / "runs" / "straight"
    (file,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    found = stored(file)
    logged = {int(line["_step"]): line for line in history_of(found) if "reward/sampling" in line}
    assert list(logged) == [1, 2, 3]
    for step, metrics in steps_of(home, "straight").items():
        kept = {
            name: logged[step].get(name) for name in metrics if name.split("/")[0] in ("reward", "parity", "held_out")
        }
        assert kept and kept == pytest.approx({name: metrics[name] for name in kept})
    assert config_of(found)["trainer"]["steps"] == 3
    assert any(kind == "report" for _, kind in artifacts_of(found))
    assert any(record.HasField("exit") for record in found)


def test_a_run_listens_on_loopback_only_asks_for_a_token_and_writes_no_secret(home, listening):
    found, answers = listening
    assert any("raylet" in name for name in found.values()) and len(found) > 5
    assert {address: name for address, name in found.items() if not is_loopback(address[0])} == {}
    assert answers and set(answers.values()) <= {401, 403}
    assert holding_a_secret(home) == []


def test_the_policy_looks_again_and_engine_and_learner_agree_on_every_step(home, straight):
    steps = steps_of(home, "straight")
    assert list(steps) == [1, 2, 3]
    assert all(step["rollout/granted_calls"] > 0 and step["rollout/frames"] > 0 for step in steps.values())
    for step in steps.values():
        assert step["parity/max/sampling"] < 1e-4 and step["parity/max/reasoning"] < 1e-4
        assert step["sync/verified_parameters"] > 20
    assert [steps[step]["policy/version"] for step in (1, 2, 3)] == [1, 2, 3]


def test_records_hold_every_token_with_both_log_probs_and_what_it_was_credited_with(home, straight):
    for step, metrics in steps_of(home, "straight").items():
        shown = records_of(home, "straight", step)
        assert [(record["group"], record["sibling"]) for record in shown] == [(g, s) for g in (0, 1) for s in range(4)]
        gaps = {"sampling": [0.0], "reasoning": [0.0]}
        for record in shown:
            assert record["duration_s"] == 8.0
            for turn in record["turns"]:
                assert "".join(turn["tokens"]).removesuffix("<|im_end|>") in record["text"]
                assert (
                    (turn["learner_logprobs"] is None) == (turn["advantage"] is None) == (record["stop"] != "answered")
                )
                pairs = zip(turn["logprobs"], turn["learner_logprobs"] or turn["logprobs"], strict=True)
                gaps[turn["segment"]] += [abs(engine - learner) for engine, learner in pairs]
        for segment, found in gaps.items():  # a sibling's log-probs at another's place would differ by whole nats
            assert max(found) == pytest.approx(metrics[f"parity/max/{segment}"], abs=1.1e-5)
    for record in records_of(home, "straight", 3, "held_out"):
        assert all(turn["learner_logprobs"] is turn["advantage"] is None for turn in record["turns"])
        assert all(len(turn["tokens"]) == len(turn["logprobs"]) > 0 for turn in record["turns"])


def test_a_run_tells_who_worked_when_and_how_fast(home, straight):
    lines = [json.loads(line) for line in (home / "runs" / "straight" / "lanes.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line, numbers in zip(lines, steps_of(home, "straight").values(), strict=True):
        assert {"rollout/0", "reward/0", "learner/0", "learner/1", "push"} <= set(line["lanes"])
        (rolled_out, *_), (learned,) = line["lanes"]["rollout/0"], line["lanes"]["learner/0"]
        assert rolled_out[1] < learned[1] < learned[2] <= line["seconds"] + 0.1
        assert 0 < numbers["idle/engines"] < 1 and 0 < numbers["idle/learners"] < 1
        assert numbers["update/flops"] > 0 and "update/mfu" not in numbers  # no GPU
        assert numbers["update/tokens_per_s"] == pytest.approx(2 * numbers["update/tokens_per_s_per_rank"])


def test_the_steps_that_are_named_are_profiled(home, straight):
    assert "profiles of step 2: " in straight
    (folder,) = (home / "runs" / "straight" / "profiles").iterdir()
    found = {path.name: gzip.decompress(path.read_bytes()) for path in folder.iterdir()}
    assert folder.name == "step_2"
    assert set(found) == {f"{name}.json.gz" for name in ("learner_0", "learner_1", "rollout_0")}
    names = {event.get("name") for event in json.loads(found["learner_1.json.gz"])["traceEvents"]}
    assert {"learner/prepare", "learner/forward", "learner/backward", "learner/optimizer"} <= names


@needs_prometheus
def test_every_query_of_every_panel_and_every_alert_finds_numbers_of_a_run(straight, monitor):
    beside, _ = monitor
    (step,) = beside.series('ray_dynframe_step{run="straight"}', time.time() - 600, time.time())
    first_s, last_s = step["values"][0][0], step["values"][-1][0]
    assert step["values"][-1][1] == "3"

    def finds_nothing(expression):
        return not beside.series(expression.replace("$run", "straight"), first_s - 5, last_s + 5)

    panels = [(section.name, panel) for section in SECTIONS for panel in section.panels if not panel.only_gpus]
    queries = [(name, panel.title, query.expression) for name, panel in panels for query in panel.queries]
    assert len(queries) > 60 and [query for query in queries if finds_nothing(query[-1])] == []
    groups = yaml.safe_load((REPOSITORY / "cluster" / "alerts.yml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    spoken_of = {name for rule in rules for name in re.findall(r"(?:dynframe:|ray_\w*)\w+(?![\w.])", rule["expr"])}
    spoken_of |= {rule["record"] for rule in rules if "record" in rule}
    counters = {name for name in spoken_of if name.endswith("_total")}  # there was nothing to count
    assert len(spoken_of) > 20 and [name for name in spoken_of - counters if finds_nothing(name)] == []
    loaded = {rule["name"]: rule for group in beside.get("rules")["groups"] for rule in group["rules"]}
    assert {rule.get("alert") or rule["record"] for rule in rules} == loaded.keys()
    assert {rule["health"] for rule in loaded.values()} == {"ok"}


def test_a_resumed_run_repeats_the_run_that_never_stopped_and_may_take_turns_from_then_on(home, straight):
    shutil.copytree(home / "runs" / "straight", home / "runs" / "resumed", symlinks=True)
    newest = home / "runs" / "resumed" / "checkpoints" / "step_00000003"
    (newest / "manifest.json").unlink()  # torn: the run must go on from the one before
    others = ("trainer.steps=3", "trainer.save_every=1", "trainer.eval_tasks=0", "placement.share_gpus=turns")
    again = dynframe(home, "train", "name=resumed", *RANKS, *others)
    assert "resuming at step 2 from" in again and "loading the checkpoint of step 2: done" in again
    assert "activation_checkpointing" not in again  # what was decided is no setting that differs
    assert texts_of(home, "resumed", 3) == texts_of(home, "straight", 3)
    resumed, once = steps_of(home, "resumed")[3], steps_of(home, "straight")[3]
    for name in ("reward/sampling", "reward/reasoning", "rollout/sampled_tokens", "advantage/sampling"):
        assert resumed[name] == once[name]
    assert resumed["grad/norm"] == pytest.approx(once["grad/norm"], rel=1e-4)
    assert list(steps_of(home, "resumed")) == [1, 2, 3]
    *_, line = (home / "runs" / "resumed" / "lanes.jsonl").read_text().splitlines()
    turns = order_of_turns(json.loads(line))
    assert tuple(turns[-len(TURN) :]) == TURN
    assert turns[-len(TURN) - 1] == "< rollout"


def started(home, name, *overrides):
    """A run in a session, and so a process group, of its own; and all its processes."""
    places = [f"output_dir={home}/runs", f"cache_dir={home}/cache", f"name={name}", "trainer.eval_tasks=0"]
    run = subprocess.Popen(
        [sys.executable, "-m", "rl", "train", *SMALL, *places, *overrides],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    return run, ProcessTree(run)


@pytest.mark.soak  # two runs of their own; that a second one is refused while the first works: tests/test_faults.py
def test_of_one_run_started_twice_one_trains_and_the_other_is_refused_with_one_line(home, straight):
    runs = [started(home, "twice", "trainer.steps=2") for _ in range(2)]
    outputs = {run.pid: run.communicate(timeout=420)[0] for run, _ in runs}
    trained, refused = sorted((run for run, _ in runs), key=lambda run: run.returncode)
    assert (trained.returncode, refused.returncode) == (0, 2), outputs
    (line,) = (line for line in outputs[refused.pid].splitlines() if "error:" in line)
    assert f"this run is being written by process {trained.pid} on " in line and f"`kill {trained.pid}`" in line
    lines = [json.loads(line) for line in (home / "runs" / "twice" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "seconds/step" in line] == [1, 2]
    assert len(list((home / "runs" / "twice" / "configs").iterdir())) == 1


@pytest.mark.soak  # runs of their own; SIGTERM so: tests/test_faults.py
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_process_group_saves_the_run_within_its_grace(home, straight, signum):
    """As Slurm, `timeout`, `docker stop` and a terminal's Ctrl-C send it: to the process, and to its group."""
    name, grace_s = f"group-{signum.name}", 100.0
    endless = ("trainer.steps=500", "trainer.save_every=0", f"trainer.stop_grace_s={grace_s:g}")
    run, tree = started(home, name, *endless)
    folder = home / "runs" / name
    try:
        until(lambda: (folder / "metrics.jsonl").exists() and steps_of(home, name))
        tree.refresh()
        asked = time.monotonic()
        run.send_signal(signum)
        os.killpg(run.pid, signum)
        output = run.communicate(timeout=2 * grace_s)[0]
        assert time.monotonic() - asked < grace_s and run.returncode == 128 + signum, output[-3000:]
        assert f"stopped by {signum.name}; saved: the same command goes on from there" in output
        assert tree.wait_gone(60.0) == []
    finally:
        tree.kill()
    done = len(steps_of(home, name))
    assert [path.name for path in (folder / "checkpoints").glob("step_*")] == [f"step_{done:08d}"]
    assert not (folder / "lease.json").exists()
    again = dynframe(home, "train", f"name={name}", f"trainer.steps={done + 1}", "trainer.eval_tasks=0")
    assert f"resuming at step {done}" in again
    assert list(steps_of(home, name)) == list(range(1, done + 2))


@pytest.fixture(scope="module")
def exported(home, straight):
    """The folder that `dynframe export` has made of the run."""
    folder = home / "exported"
    answer = subprocess.run(
        [sys.executable, "-m", "rl", "export", str(home / "runs" / "straight"), str(folder)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=within(60),
    )
    assert answer.returncode == 0, answer.stderr
    return folder


def test_an_exported_policy_loads_in_transformers(exported):
    from rl.config.file import load_config
    from rl.policy.model import load_policy

    config = load_config([REPOSITORY / "configs" / "quickstart.yaml"])
    assert sum(p.numel() for p in load_policy(exported, config.policy.scenes).parameters()) > 1e6


def test_a_run_evaluated_afterwards_is_worth_what_it_said_itself(home, straight):
    run = home / "runs" / "straight"
    dynframe(home, "eval", "name=straight", "evaluation.limit=4", "--run", str(run))
    report = json.loads((run / "eval" / "held_out" / "metrics.json").read_text())
    said = json.loads((run / "summary.json").read_text())
    assert report["policy"]["step"] == said["best"]["step"] == 3
    for name in ("reward_sampling", "reward_reasoning", "accuracy", "term/window"):
        assert report["metrics"][name]["value"] == pytest.approx(said["held_out"]["after"][name])
    assert report["behaviour"]["frames"]["value"] == pytest.approx(said["held_out"]["after"]["frames"])


def test_an_exported_policy_plays_in_the_engine_as_in_the_learner_and_controls_have_teeth(home, exported):
    own = ("cold_start.enabled=false", f"policy.path={exported}", "--no-force-call")
    printed = dynframe(home, "parity", *own, "--json", "--tasks", "2")
    report = json.loads(printed.splitlines()[-1])
    worst = 0.0
    for segment in ("prompt", "sampling", "reasoning"):
        assert report[segment]["tokens"] > 0 and report[segment]["max"] <= 1e-4
        worst = max(worst, report[segment]["max"])
    assert len(report["controls"]) == 3 and min(report["controls"].values()) >= 100 * worst


@pytest.mark.soak  # a run of its own; evaluations go through the same pools
def test_an_exported_policy_is_looked_at_without_training(home, exported):
    records = home / "records.jsonl"
    arguments = (
        "cold_start.enabled=false",
        f"policy.path={exported}",
        "--tasks",
        "1",
        "--greedy",
        "--out",
        str(records),
    )
    assert "policy: " in dynframe(home, "rollout", *arguments)
    (record,) = map(json.loads, records.read_text().splitlines())
    assert record["turns"][0]["segment"] == "sampling"


@pytest.fixture(scope="module")
def ray_head():
    """A Ray head as an administrator would start it, on ports of its own: its address, and its users' environment."""
    programs = Path(sys.executable).parent
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short: paths of Unix sockets end at 107 bytes
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": folder, "HOME": folder}
    environment["VLLM_CACHE_ROOT"] = str(Path("~/.cache/vllm").expanduser())  # what vLLM knows of its models
    environment["PATH"] = f"{programs}:{environment['PATH']}"  # as in an activated environment
    ports = {"--port": 26379, "--dashboard-port": 28265, "--ray-client-server-port": 21001}
    ports |= {"--dashboard-agent-listen-port": 25365, "--min-worker-port": 30002, "--max-worker-port": 30999}
    options = [f"{name}={value}" for name, value in ports.items()]
    fixed = ["--head", "--num-cpus=8", "--dashboard-host=127.0.0.1", "--disable-usage-stats", "--block"]
    head = subprocess.Popen(
        [programs / "ray", "start", *fixed, *options, "--object-store-memory=268435456"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for("http://127.0.0.1:28265")
    yield "http://127.0.0.1:28265", environment
    for process in [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]:
        process.kill()  # asked politely, a head drains for half a minute
    head.wait(timeout=60)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.soak  # the next test submits a job as well, stops it and submits it again
def test_a_job_submitted_with_rays_own_command_trains_on_the_cluster(home, straight, ray_head):
    address, environment = ray_head
    arguments = [*SMALL, f"cache_dir={home}/cache", "name=job", "trainer.steps=1", "trainer.eval_tasks=0"]
    submit = ["ray", "job", "submit", "--address", address, "--runtime-env", "cluster/runtime_env.yaml"]
    answer = subprocess.run(
        [*submit, "--", "python", "-m", "rl", "train", *arguments],  # the output folder stays relative
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=420,
    )
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
    lasting = Path(environment["HOME"]) / "dynframe-rl"  # Ray deletes the job's working directory
    assert list(steps_of(lasting, "job")) == [1]


def test_a_stopped_job_has_saved_and_goes_on_when_it_is_submitted_again(home, straight, ray_head):
    from ray.job_submission import JobStatus, JobSubmissionClient

    address, environment = ray_head
    run = Path(environment["HOME"]) / "dynframe-rl" / "runs" / "stopped"
    arguments = [*SMALL, f"cache_dir={home}/cache", "name=stopped", "trainer.eval_tasks=0", "trainer.save_every=0"]

    def submit(*more):
        command = [sys.executable, "-m", "rl", "submit", *arguments, *more, "--address", address]
        return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=420)

    def jobs(*arguments):
        command = [sys.executable, "-m", "rl", "jobs", *arguments, "--address", address]
        return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=420)

    said = submit("trainer.steps=500", "--no-follow").stdout
    job, client = said.split()[1], JobSubmissionClient(address)
    until(lambda: (run / "metrics.jsonl").exists() and '"seconds/step"' in (run / "metrics.jsonl").read_text())
    stopped = jobs("stopped", "--stop", "--json").stdout
    assert f"stopping {job}: it saves first" in stopped and json.loads(stopped.splitlines()[-1])["status"] == "STOPPED"
    assert client.get_job_status(job) is JobStatus.STOPPED
    done = len(steps_of(run.parents[1], "stopped"))
    assert [path.name for path in (run / "checkpoints").glob("step_*")] == [f"step_{done:08d}"]

    again = submit(f"trainer.steps={done + 1}")
    assert again.returncode == 0 and f"resuming at step {done} from" in again.stdout
    assert list(steps_of(run.parents[1], "stopped")) == list(range(1, done + 2))

    listed = json.loads(jobs("--json").stdout.splitlines()[-1])["jobs"]
    assert [(one["run"], one["status"]) for one in listed[:2]] == [("stopped", "SUCCEEDED"), ("stopped", "STOPPED")]


@pytest.mark.soak  # jobs of its own
def test_a_job_is_resumed_by_the_name_of_its_run(home, straight, ray_head):
    address, environment = ray_head

    def ask(*command):
        arguments = [sys.executable, "-m", "rl", *command, "--address", address]
        return subprocess.run(arguments, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=420)

    few = (f"cache_dir={home}/cache", "name=done", "trainer.eval_tasks=0", "trainer.steps=1")
    assert ask("submit", *SMALL, *few).returncode == 0
    resumed = ask("jobs", "done", "--resume", "--follow")
    assert resumed.returncode == 0 and "1 steps are done" in resumed.stdout


def until(happened, timeout_s=240):
    """Return when something is so in another program's files or answers."""
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def wait_for(address, timeout_s=90):
    """Return when the job server answers; each attempt waits for the connection, not for a clock."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=5).read()
            return
        except (urllib.error.URLError, ConnectionError):
            assert time.monotonic() < deadline, f"no job server at {address} within {timeout_s} s"
            time.sleep(0.2)
