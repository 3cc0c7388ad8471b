"""Benchmarks are found by name, late, and a wrong name says what there is."""

import subprocess
import sys

import pytest

from envs.benchmarks.benchmark import Benchmark, Example
from envs.benchmarks.registry import BUILTIN, UnknownBenchmark, resolve
from rl.trajectory import AnswerKind, TimeSpan, VideoTask


@pytest.mark.parametrize("name", BUILTIN)
def test_every_name_leads_to_its_benchmark(name):
    benchmark = resolve(name)
    assert isinstance(benchmark, Benchmark) and benchmark.name == name
    assert benchmark is resolve(BUILTIN[name])


@pytest.mark.parametrize("name", BUILTIN)
@pytest.mark.parametrize("answer", [AnswerKind.LETTER, AnswerKind.SPAN])
def test_a_missing_prediction_is_worth_0_in_every_metric_and_names_the_headline(name, answer):
    task = VideoTask("t", "/clip.mp4", "?", "B" if answer is AnswerKind.LETTER else "0.00 - 1.00", answer)
    values = resolve(name).score(Example(task, (TimeSpan(0, 1),), "short"), None)
    assert values[resolve(name).headline] == 0.0
    assert set(values.values()) == {0.0} and "unparsed" not in values
    assert set(resolve(name).over_groups) <= set(values)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("video-mme", r"unknown benchmark 'video-mme'; did you mean 'video_mme'\?; built in: activitynet_mr, "),
        ("x", r"unknown benchmark 'x'; built in: .*; your own: 'package\.module:NAME' or 'path/file\.py:NAME'"),
        ("a:", "unknown benchmark"),
        (":B", "unknown benchmark"),
        ("no_such_module:B", "cannot import no_such_module: ModuleNotFoundError"),
        ("envs.benchmarks.mlvu:TASKS", "'TASKS' in envs.benchmarks.mlvu is no Benchmark, but "),
        ("envs.benchmarks.mlvu:none", "no Benchmark 'none' in envs.benchmarks.mlvu"),
        ("envs.benchmarks.mlvu:MLV", "no Benchmark 'MLV' in envs.benchmarks.mlvu; did you mean 'MLVU'"),
        ("/nowhere/mine.py:MINE", "no file /nowhere/mine.py"),
    ],
)
def test_a_wrong_name_is_refused_clearly(name, message):
    with pytest.raises(UnknownBenchmark, match=message) as refused:
        resolve(name)
    assert isinstance(refused.value, KeyError)
    assert not str(refused.value).startswith('"')


def test_a_benchmark_of_ones_own_is_found(tmp_path, monkeypatch):
    (tmp_path / "my_benchmark.py").write_text(
        "from envs.benchmarks.benchmark import Benchmark, LoadedExamples\n"
        "MINE = Benchmark('mine', 'nobody', lambda a, r: LoadedExamples(()), lambda e, p: {'x': 0.0}, 'x')\n"
    )
    assert resolve(f"{tmp_path}/my_benchmark.py:MINE").name == "mine"
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve("my_benchmark:MINE").name == "mine"


def test_a_benchmark_whose_file_ends_the_process_is_refused(tmp_path):
    (tmp_path / "script.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(UnknownBenchmark, match=r"benchmark '.*' *: cannot load .*script\.py: SystemExit: 3 at .*:2"):
        resolve(f"{tmp_path}/script.py:MINE")


def test_the_table_imports_no_benchmark_before_it_is_asked():
    code = "import sys, envs.benchmarks.registry; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert "envs.benchmarks.registry" in loaded.split()
    assert not {path.partition(":")[0] for path in BUILTIN.values()} & set(loaded.split())
