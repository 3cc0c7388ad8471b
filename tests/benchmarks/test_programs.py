"""Every program under benchmarks/ runs to its end on a few items, and prints a table of numbers that can be true.

What the numbers are is measured by hand (benchmarks/RESULTS.md); here the code that measures them is kept running.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rl.config.policy import ScenesConfig, TinyPolicyConfig
from rl.policy.tiny import build_tiny_policy
from tests.envs.setting import write_clip
from tests.rl.report.recorded_run import write_run

pytestmark = pytest.mark.cli
ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
MEDIAN_AND_RANGE = re.compile(rf"({NUMBER.pattern})%? \(({NUMBER.pattern})%?\.\.({NUMBER.pattern})%?\)")
WORLD = ("data.quickstart.train_clips=6", "data.quickstart.held_out_clips=3", "cold_start.enabled=false")
ROLLOUTS = ("rollout.num_workers=1", "rollout.group_size=2", "rollout.tasks_per_step=1", "rollout.max_new_tokens=16")
SMALL = (*WORLD, *ROLLOUTS, "learner.num_ranks=1", "trainer.eval_tasks=3", "placement.dashboard=false")
ENGINES = [pytest.mark.ray, pytest.mark.vllm]
TRAINING = [*ENGINES, pytest.mark.deepspeed]


def run(*command, path=""):
    """A program of benchmarks/ as a user starts it; its tables, each a list of rows by heading.

    Args:
        path: before PYTHONPATH.
    """
    program = ["-m", command[0]] if command[0].startswith("benchmarks.") else [ROOT / "benchmarks" / command[0]]
    ended = subprocess.run(
        list(map(str, (sys.executable, *program, *command[1:]))),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{path}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-6000:]
    return tables_in(ended.stdout)


def tables_in(text):
    tables, headings, rows = [], None, []
    for line in [*text.splitlines(), ""]:
        cells = [cell.strip() for cell in line.strip()[1:-1].split("|")] if line.startswith("|") else None
        if cells is None:
            if headings:
                tables.append(rows)
            headings, rows = None, []
        elif headings is None:
            headings = cells
        elif not set(line) <= set("|- "):
            assert len(cells) == len(headings), line
            rows.append(dict(zip(headings, cells, strict=True)))
    return tables


def numbers(row, *headings):
    """Numbers of a row's cells; of `median (min..max)` the median, which must lie within."""
    found = []
    for heading in headings:
        if spread := MEDIAN_AND_RANGE.fullmatch(row[heading]):
            middle, low, high = map(float, spread.groups())
            assert low <= middle <= high, row
            found.append(middle)
        else:
            assert NUMBER.fullmatch(row[heading].removesuffix("%")), f"{heading}: {row[heading]!r}"
            found.append(float(row[heading].removesuffix("%")))
    return found


def assert_positive(row, *headings):
    assert all(number > 0 for number in numbers(row, *headings)), row


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory, cache_dir):
    """The folder of a run of two steps, trained by benchmarks/quickstart_seeds.py, and the tables it printed."""
    home = tmp_path_factory.mktemp("seeds")
    overrides = (*SMALL, "trainer.steps=2", f"cache_dir={cache_dir}")
    return home, run("quickstart_seeds.py", "--seeds", 0, "--output-dir", home, *overrides)


def test_checkpoints():
    ((row,),) = run("checkpoints.py", "--mib", 1, "--repeats", 1, "--alone-s", 0.1)
    assert row["MiB"] == "1"
    assert_positive(row, "blocked s", "at once s", "published s", "beside")


def test_bandit(tmp_path):
    (rows,) = run("benchmarks.learning.bandit", "--regimes", "4 siblings", "--plot", tmp_path / "bandit.png")
    assert {row["groups"] for row in rows} == {"all"} and (tmp_path / "bandit.png").is_file()
    for row in rows:
        assert_positive(row, "look: noise / signal", "answer: noise / signal")


def test_decode(tmp_path):
    write_clip(tmp_path / "a.mp4", seconds=2.0)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    (rows,) = run("decode.py", tmp_path, "--repeats", 1, "--windows", 2)
    assert [row["clip"] for row in rows] == ["a.mp4", "all clips"]
    for row in rows:
        assert_positive(row, "decord / ours")
        assert all(number >= 0 for number in numbers(row, "ours ms", "no cache ms", "decord ms", "segmentation share"))


def test_decode_looks():
    (kinds,) = run("decode_looks.py", "--repeats", 1, "--looks", 2, "--seconds", 0.5, "--shrink", 4)
    assert len(kinds) == 5
    for row in kinds:
        assert numbers(row, "pictures: whole decodes") == [1.0]  # coarse frames and looks together
        assert_positive(row, "frames", "processor time: whole decodes", "whole decode ms")


def test_report(tmp_path):
    recorded = write_run(tmp_path / "run", tmp_path / "clips", steps=2)
    ((row,),) = run("report.py", recorded, "--steps", 3, "--trajectories", 18, "--repeats", 1)
    assert (row["run"], row["steps"], row["trajectories"]) == ("run", "3 (2 trained)", str(3 * 16 + 1))
    assert_positive(row, "trajectories", "page MiB", "build s", "build CPU s")
    if row["ready ms"] != "no browser":
        assert_positive(row, "ready ms", "open ms")


def test_commands():
    ((bare, helped),) = run("commands.py", "--repeats", 1, "--only", "python", "--help")
    assert_positive(helped, "s", "CPU s")
    assert (bare["what"], helped["what"], helped["aim s"]) == ("python", "--help", "0.3")


@pytest.mark.soak  # half a minute
@pytest.mark.ray
def test_driver():
    small = ("--engines", 3, "--trajectories", 24, "--siblings", 4, "--steps", 2, "--hosts", 2, "--group-seconds", 0.1)
    ((row,),) = run("driver.py", *small)
    assert (row["engines"], row["trajectories a step"]) == ("3", "24")
    assert_positive(row, "CPU ms", "rollout", "update", "report", "MiB before", "after one", "after all", "s a step")
    assert_positive(row, "pickled B")  # of so few groups, all of which are recorded, it says no more


def test_fidelity(tmp_path):
    stock = build_tiny_policy(
        TinyPolicyConfig(family="qwen3_vl"), ScenesConfig(), tmp_path / "stock", seed=3, stock=True
    )
    (rows,) = run("fidelity.py", stock)
    assert [row["dtype"] for row in rows] == ["float32", "bfloat16"]
    assert all(row["tokens"] == row["positions"] == "equal" for row in rows)
    assert all(row["tower"] == row["logits"] == "0.0e+00" for row in rows)


def test_shared_prefix():
    ((row,),) = run("shared_prefix.py", "--policy", "small", "--sizes", "60x20", "--siblings", 4, "--repeats", 1)
    assert_positive(row, "padded tok/s", "packed tok/s", "shared tok/s", "packed/padded", "shared/padded")
    assert row["bound"] == "2.29" and float(row["max gap (nat)"]) < 2e-5


def test_scene_rules():
    (rows,) = run("scene_rules.py", "--frames", 3, "--height", 112, "--width", 112, "--repeats", 1)
    literal, *_, features, _ = (numbers(row, "CPU ms / frame")[0] for row in rows)
    assert features > 10 * literal > 0 and {row["x the literal rule"] for row in rows} > {"1"}


@pytest.mark.deepspeed
def test_finetune():
    (rows,) = run("finetune.py", "--examples", 8, "--micro-tokens", 600, "--repeats", 1)
    assert [row["way"] for row in rows] == ["one a pass", "packed", "packed, shared"]
    assert_positive(rows[-1], "tokens/CPU s", "x one a pass")
    assert all(row["padding"] == "0.0%" != row["if padded"] for row in rows)
    assert [row["prefix"] == "0.0%" for row in rows] == [True, True, False]
    assert rows[-1]["tower passes"] == "1.00"


@pytest.mark.soak  # half a minute
@pytest.mark.deepspeed
def test_memory_plan():
    ((row,),) = run("memory_plan.py", "--small", "--vocabulary", "tiny")
    assert_positive(row, "backward planned", "backward measured", "step planned", "step measured")
    assert abs(float(row["error of the peak"].removesuffix("%"))) < 15


@pytest.mark.deepspeed
def test_loading(tmp_path):
    small = TinyPolicyConfig(hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1, vocab_size=600)
    policy = build_tiny_policy(small, ScenesConfig(), tmp_path / "policy", seed=0)
    ((row,),) = run("loading.py", policy, "--stages", 3, "--ranks", 2, "--reference", "yes", "--scratch", tmp_path)
    assert (row["ZeRO"], row["ranks"], row["reference"]) == ("3", "2", "yes")
    assert_positive(row, "processes, GiB", "peak", "held", "peak, copies", "held, copies", "largest rank's peak")
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]  # nothing is left of the checkpoint


def test_batch_invariance():
    (rows,) = run("batch_invariance.py", "--only", "no settings")
    assert [row["settings"] for row in rows] == ["no settings", "as Intel, no settings"]
    for row in rows:
        cells = [cell for heading, cell in row.items() if heading != "settings"]
        assert all(re.fullmatch(r"holds|\d+ of \d+", cell) for cell in cells) or cells[0] == "needs a C compiler"
    assert rows[0]["64"] == "holds"


def test_gpu_learner(tmp_path):
    """On a machine with PyTorch and transformers and nothing else of what training needs."""
    absent = ("deepspeed", "vllm", "ray", "omegaconf", "av", "decord", "wandb", "typer", "rich")
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({absent}))\n")
    small = ("--device", "cpu", "--tiny", "--trajectories", 1, "--accumulate", 2, "--memory-gib", 1)

    tables = run("gpu_learner.py", *small, "--out", tmp_path / "out", path=tmp_path)

    machine = {row["what"]: row["is"] for row in tables[0]}
    assert machine["deepspeed"] == machine["vllm"] == "missing"
    assert machine["optimizer steps"] == "torch: DeepSpeed is not installed"
    rows = [row for table in tables for row in table]
    updates = [row for row in rows if "tokens/s" in row]
    assert [(row["policy"], row["mode"]) for row in updates] == [
        ("qwen2_5_vl/tiny", "plain"),
        ("qwen3_vl/tiny", "plain"),
        ("qwen2_5_vl/tiny", "packed, two per pass"),
        ("qwen2_5_vl/tiny", "shared prefix, two per pass"),
        ("qwen2_5_vl/tiny", "shared prefix, eight per pass"),
        ("qwen2_5_vl/tiny", "plain, with a reference"),
        ("qwen2_5_vl/tiny", "plain, activations kept"),
    ]
    for row in updates:
        assert row["layers"] == "2"  # both fit
        assert_positive(row, "tokens", "s", "tokens/s", "planned GiB", "TFLOP/s", "of a large product")
    counted = [row["SDPA calls"] for row in rows if "tower, one pass" in row]
    assert counted == [row["SDPA calls"] for row in rows if "block" in row]  # without weights as with them
    (error,) = [row for row in rows if "micro-batches" in row]
    assert all(0 < number < 20 for number in numbers(error, "added in bf16", "added in float32"))
    kept = json.loads((tmp_path / "out.json").read_text())
    assert kept["failed"] == []
    assert tables_in((tmp_path / "out.md").read_text()) == tables


def test_learner_beside():
    small = ("--small", "--trajectories", 6, "--parameters", 200_000, "--repeats", 2)
    (before, ahead), digests = run("learner_beside.py", *small)
    for row in (before, ahead):
        assert_positive(row, "s to the first pass", "s of the step", "CPU s", "peak MB")
    assert numbers(ahead, "peak MB") < numbers(before, "peak MB")
    for row in digests:
        assert_positive(row, "CPU s", "GB/s")


def test_tower_attention():
    rows, parts = run("tower_attention.py", "qwen2_5_vl/tiny", "qwen3_vl/tiny", "--scenes", 2, "--repeats", 2)
    assert [row["pass"] for row in rows] == ["forward", "with gradients"] * 4
    for row in rows:
        calls, of_stock = numbers(row, "calls per block", "stock's calls")
        assert calls <= 10 and calls < of_stock and float(row["difference"]) == 0
        assert_positive(row, "CPU s", "stock's CPU s", "stock / ours")
    for row in parts:
        assert_positive(row, "features, MB in bfloat16", "whole pass, CPU s", "key, CPU s", "whole / kept")


@pytest.mark.soak  # the engine itself is tested elsewhere
@pytest.mark.deepspeed
def test_gpu_learner_with_deepspeed(tmp_path):
    """The project's own engine, and a budget that leaves nothing for the last section."""
    sections = ("--only", "update", "gradients", "modes", "--budget-seconds", 90)  # what the last takes by itself
    small = ("--device", "cpu", "--tiny", "--policies", "qwen2_5_vl/tiny", "--trajectories", 1, "--accumulate", 2)

    machine, (update,), (error,) = run("gpu_learner.py", *small, *sections, "--out", tmp_path / "out")

    assert {row["what"]: row["is"] for row in machine}["optimizer steps"] == "deepspeed"
    assert_positive(update, "s", "tokens/s")
    assert all(0 < number < 20 for number in numbers(error, "added in bf16", "added in float32"))
    assert "modes\n\nnot reached" in (tmp_path / "out.md").read_text()


@pytest.mark.parametrize("program", sorted(path.name for path in (ROOT / "benchmarks").glob("*.py")))
def test_no_program_is_forgotten(program):
    parts = (
        "tables.py",
        "trainings.py",
        "process_times.py",
        "scripted_workers.py",
        "cache_reuse.py",
        "transformers_rollouts.py",
        "intervals.py",
        "judge_server.py",
        "records.py",
    )  # of programs, tested with them
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("*.py"))
    named = f'run("{program}"' in tests or f"benchmarks.{program.removesuffix('.py')}" in tests
    assert program in parts or program.startswith("learner_") or named


class TestTrained:
    """Programs that train, or read what was trained."""

    pytestmark = TRAINING

    def test_quickstart_seeds(self, seeds):
        _, (rows,) = seeds
        assert [row["measure"] for row in rows] == ["reward_sampling", "accuracy", "reward_reasoning"]
        for row in rows:
            before, after = map(float, row["seed 0"].split(" -> "))
            assert 0 <= before <= 1 and 0 <= after <= 1
            assert float(row["gain"].split()[0]) == pytest.approx(after - before, abs=2e-3)

    def test_zoom(self, tmp_path, cache_dir):
        few = (
            *WORLD[:2],
            *ROLLOUTS[:3],
            "cold_start.steps=60",
            "cold_start.batch_size=8",
            "learner.num_ranks=1",
            "trainer.eval_tasks=3",
        )
        kept = ("--home", tmp_path, "--records", tmp_path / "runs.jsonl")
        own = (*few, "placement.dashboard=false", f"cache_dir={cache_dir}", "trainer.steps=1")
        ((row,),) = run("zoom.py", *own, *kept, "--seeds", 0, "--arms", "zoom")
        assert row["arm"] == "zoom"
        assert all(0 <= number <= 1 for number in numbers(row, "accuracy, before", "accuracy, after"))
        lines = (tmp_path / "zoom-zoom-0" / "metrics.jsonl").read_text().splitlines()
        (step,) = [line for line in map(json.loads, lines) if "seconds/step" in line]
        assert step["parity/max/reasoning"] < 1e-4  # engine and learner, whatever was zoomed in on
        shutil.rmtree(tmp_path / "zoom-zoom-0")
        assert run("zoom.py", *own, *kept, "--seeds", 0, "--arms", "zoom") == [[row]]  # from the record

    def test_memory(self, seeds):
        (rows,) = run("memory.py", seeds[0] / "seed0")
        assert [row["seed0, MiB"] for row in rows] == ["driver", "rollout", "learner"]
        for row in rows:
            assert_positive(row, "step 1", "step 2")
            assert all(number > 50 for number in numbers(row, "step 1", "step 2"))

    def test_learning(self, seeds, tmp_path):
        for method in ("grpo", "sd_grpo"):  # finished runs are not trained again
            shutil.copytree(seeds[0] / "seed0", tmp_path / f"noise0-{method}-0")
        asked = ("--seeds", 0, "--regimes", "noise0", "--methods", "grpo", "sd_grpo", "--ceilings", 0)
        assert run("benchmarks.learning", *asked, "--home", tmp_path, "--out", tmp_path / "out") == []
        winners, differences, outcome, room, *_ = tables_in((tmp_path / "out" / "RESULTS.md").read_text())
        assert winners[0]["answer accuracy, end"] == "not told apart"  # the same run twice, one seed
        assert differences[0]["IoU of the window, end"] == "+0.000"
        assert [row["method"] for row in outcome] == ["no RL", "grpo", "sd_grpo"]
        assert (room[0]["world"], room[0]["a guess"]) == ("colour", "0.25")
        assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"curves.png", "differences.png"}

    def test_density(self, seeds, tmp_path):
        for arm in ("answer", "cheap"):  # finished runs are not trained again
            shutil.copytree(seeds[0] / "seed0", tmp_path / f"{arm}-0")
        options = ("--seeds", 0, "--arms", "answer", "cheap", "--home", tmp_path, "--out", tmp_path / "out")
        assert run("benchmarks.density", *options) == []  # the tables are in a file
        rates, _, density, _, _, looks, (difference,), _ = tables_in((tmp_path / "out" / "RESULTS.md").read_text())
        assert [row["arm"] for row in rates] == ["*before, one call*", "answer alone", "answer, low price"]
        assert list(rates[0])[1:] == ["needs 3", "needs 7"]  # of three clips of a world that lists no rates
        frames, scenes = zip(*(numbers(row, "frames", "scenes") for row in looks), strict=True)
        assert list(frames) == sorted(frames) and max(scenes) < max(frames)  # denser looks do not cost as much more
        assert len(density) == 3 and difference["accuracy"] == "+0.000"  # the same run twice, one seed
        assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"rates.png", "costs.png"}

    @pytest.mark.soak  # it trains two checkouts, in minutes
    def test_step_time(self, cache_dir):
        overrides = (*SMALL, "rollout.max_new_tokens=8")
        steps, stages, processes = run("step_time.py", ROOT, *overrides, "--steps", 3, "--warm-up", 1, "--repeats", 1)
        assert [row["checkout"] for row in steps] == ["here", "other", "here / other"]
        for row in steps:
            assert_positive(row, "s per step")
        assert {"seconds/rollout", "seconds/update", "seconds/sync"} <= {row["seconds per step"] for row in stages}
        assert {"driver", "engines", "learners", "rewards", "Ray", "all"} <= {r["processor seconds"] for r in processes}
        for row in processes:
            assert_positive(row, "start: other", "start: here")

    @pytest.mark.soak  # it trains twice
    def test_overlap(self, cache_dir):
        (lags,) = run("overlap.py", *SMALL, "rollout.max_new_tokens=8", "--steps", 4, "--warm-up", 1, "--repeats", 1)
        assert [row["lag"] for row in lags] == ["0", "1"]
        assert lags[0]["staleness"] == "0.00" and 0 < float(lags[1]["staleness"]) <= 1
        for row in lags:
            assert_positive(row, "s per step", "rollout s", "learn s", "step / longer half")

    @pytest.mark.soak  # as long as the next one
    def test_side_by_side(self, tmp_path, cache_dir):
        tables = run("benchmarks.side_by_side", *self.small_side(tmp_path, cache_dir), "--real-steps", 0)
        ((row,),) = tables  # without a checkout of 0.3.0 and an environment of TRL
        assert row["contestant"] == "ours, one process" and numbers(row, "x ours") == [1.0]
        assert_positive(row, "CPU s per step", "wall s", "opening", "written")
        assert {"rollout", "update", "push"} <= set(row["CPU s by stage"].split())

    @pytest.mark.soak  # two real runs, in a minute
    def test_side_by_side_with_a_real_run(self, tmp_path, cache_dir):
        tables = run("benchmarks.side_by_side", *self.small_side(tmp_path, cache_dir), "--real-steps", 2)
        rows = [row for table in tables for row in table]
        assert [row["contestant"].partition(", ")[2] for row in rows] == [
            *("one process", "real run", "real run, one engine and rank")
        ]
        for row in rows:
            assert_positive(row, "CPU s per step", "x ours", "wall s")

    def small_side(self, tmp_path, cache_dir):
        policy = build_tiny_policy(TinyPolicyConfig(), ScenesConfig(), tmp_path / "policy", seed=0)
        few = ("data.quickstart.train_clips=6", "data.quickstart.held_out_clips=3", *ROLLOUTS)
        given = ("--policy", policy, "--cache-dir", cache_dir, "--openings", "57x1")
        return (*given, "--override", *few, "learner.num_ranks=1")

    @pytest.mark.soak  # a minute
    def test_weight_push(self, cache_dir):
        sizes = ("--sizes", "tiny", "--transports", "gloo", "--repeats", 1)
        ((row,),) = run("weight_push.py", *sizes, "--cache-dir", cache_dir)
        assert (row["policy"], row["transport"], row["code"]) == ("tiny", "gloo", "this")
        assert_positive(row, "MiB", "first push s", "push s", "GB/s", "push / memcpy", "CPU / memcpy")


class TestRolledOut:
    """Programs with engines and no learner."""

    pytestmark = ENGINES

    @pytest.mark.soak  # a minute
    def test_adapter_push(self, cache_dir):
        few = ("--repeats", 2, "--requests", 4, "--new-tokens", 8, "--cache-dir", cache_dir)
        ((row,),) = run("adapter_push.py", "--sizes", "tiny", "--ways", "adapter", *few)
        assert_positive(row, "MB sent", "push, CPU s", "decoding, CPU ms per token")
        moved, off_by = numbers(row, "moved", "off by")
        assert moved > 0.01 > 100 * off_by  # the engine's policy is the learner's, and the updates matter

    @pytest.mark.soak  # two minutes
    def test_rollout(self, cache_dir):
        rates, caches = run("rollout.py", "--tasks", 1, "--repeats", 1, *SMALL, f"cache_dir={cache_dir}")
        assert [row["contestant"] for row in rates] == [
            "training step",
            "one worker",
            "one request",
            "transformers batched",
            "transformers",
        ]
        for row in rates:
            assert row["trajectories"] == "2"
            assert_positive(row, "trajectories/s", "x transformers", "x transformers batched", "CPU ms each")
            assert 0 < numbers(row, "sampled tokens each")[0] <= 16
        assert numbers(rates[-1], "x transformers") == numbers(rates[-2], "x transformers batched") == [1.0]
        counted = {row["of `one worker`"]: numbers(row, "median (min..max)")[0] for row in caches}
        assert counted["encoder runs per group"] == counted["least possible: 1 + distinct granted windows"]

    @pytest.mark.soak  # two minutes
    def test_evaluation(self, cache_dir):
        (rows,) = run("evaluation.py", "--tasks", 1, "--repeats", 1, *SMALL, f"cache_dir={cache_dir}")
        assert [row["contestant"] for row in rows] == ["dynframe eval", "one by one"]
        for row in rows:
            assert row["examples"] == "1"
            assert_positive(row, "examples/s", "x one by one", "sampled tokens each")
