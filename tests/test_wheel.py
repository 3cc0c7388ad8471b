"""A built wheel: one import name in a stranger's environment, the whole command line and a run from an empty folder."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from rl import __version__
from rl.config.installation import shipped_names
from tests.calibration import within

REPOSITORY = Path(__file__).parents[1]
ROOMS = ("rl", "actors", "rewards", "envs", "cluster")
SOURCES = (*ROOMS, "configs", "examples", "pyproject.toml", "setup.py", "README.md")
SMALL = (
    *("data.quickstart.train_clips=8", "data.quickstart.held_out_clips=4", "cold_start.steps=2"),
    *("rollout.num_workers=1", "rollout.tasks_per_step=2", "rollout.group_size=2", "trainer.eval_tasks=2"),
    *("trainer.steps=2", "learner.num_ranks=1", "placement.dashboard=false"),
)

pytestmark = pytest.mark.cli


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: a checkout may hold what an earlier build has left behind."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source, target = REPOSITORY / name, folder / "source" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    pip("wheel", "--no-build-isolation", "--wheel-dir", folder, folder / "source")
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """An environment with the wheel alone, which sees the libraries of this one but no checkout."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=within(120))
    (packages,) = folder.glob("lib/*/site-packages")
    libraries = [entry for entry in sys.path if Path(entry).name == "site-packages"]
    (packages / "libraries.pth").write_text(
        "\n".join(libraries)
    )  # of which no .pth file is read, an editable one's too
    pip("--python", folder / "bin" / "python", "install", wheel)
    return folder


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    answer = subprocess.run(
        [*command, "--no-index", "--no-deps"], capture_output=True, text=True, timeout=within(240), check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


def ran(environment, program, *arguments, cwd, timeout_s=120.0, **variables):
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [environment / "bin" / program, *map(str, arguments)],
        cwd=cwd,
        env=inherited | {"COLUMNS": "200"} | {name: str(value) for name, value in variables.items()},
        capture_output=True,
        text=True,
        timeout=within(timeout_s),
        check=False,
    )


def python(environment, script, cwd, **variables):
    """What a program of somebody else prints."""
    answer = ran(environment, "python", "-c", script, cwd=cwd, **variables)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout, answer.stderr


@pytest.fixture
def strangers(tmp_path):
    """A folder in which every package of ours has a namesake, which no process of ours may import."""
    for name in ROOMS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"print('a stranger: {name}')\n")
    return tmp_path


def test_every_file_of_the_project_is_in_the_wheel_below_one_name(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    folders = (*ROOMS, "configs", "examples")
    expected = {path.relative_to(REPOSITORY) for folder in folders for path in (REPOSITORY / folder).rglob("*")}
    expected = {path for path in expected if (REPOSITORY / path).is_file() and "__pycache__" not in path.parts}
    front = Path("cluster/installed")
    expected = {path.relative_to(front) if path.is_relative_to(front) else path for path in expected}
    packed = {name for name in names if ".dist-info/" not in name}
    assert packed == {f"dynframe_rl/{path}" for path in expected}


def test_the_version_is_that_of_the_package(environment):
    (folder,) = environment.glob("lib/*/site-packages/dynframe_rl-*.dist-info")
    assert Distribution.at(folder).version == __version__


@pytest.mark.parametrize("name", ROOMS)
def test_no_other_program_of_the_environment_sees_our_packages(environment, tmp_path, name):
    answer = ran(environment, "python", "-c", f"import {name}", cwd=tmp_path)
    assert answer.returncode == 1 and f"ModuleNotFoundError: No module named '{name}'" in answer.stderr


def test_a_program_that_wants_them_has_them_first_and_so_have_its_children(environment, strangers):
    script = (
        "import subprocess, sys, dynframe_rl; dynframe_rl.activate(); import rewards.answer, rl.config.file\n"
        "child = 'import envs.answers.letters; print(envs.__file__)'\n"
        "print(rewards.__file__, flush=True); subprocess.run([sys.executable, '-P', '-c', child], check=True)"
    )
    printed, _ = python(environment, script, strangers)
    assert [Path(line).parts[-3:] for line in printed.splitlines()] == [
        ("dynframe_rl", "rewards", "__init__.py"),
        ("dynframe_rl", "envs", "__init__.py"),
    ]


def test_a_program_that_has_imported_a_namesake_is_refused_by_name_and_place(environment, strangers):
    script = "import rewards, dynframe_rl; dynframe_rl.activate()"
    answer = ran(environment, "python", "-c", script, cwd=strangers)
    assert answer.returncode == 1
    assert f"package 'rewards', and this process has another one ({strangers}/rewards/__init__.py)" in answer.stderr


def test_an_engine_of_another_program_keeps_its_own_packages_and_is_told_what_it_lacks(environment, strangers):
    script = (
        "from dynframe_rl.vllm_plugins import register_policies; register_policies(); import rl; print(rl.__file__)"
    )
    printed, told = python(environment, script, strangers)
    assert printed.splitlines() == ["a stranger: rl", f"{strangers}/rl/__init__.py"]
    assert "vLLM will not know the policies of dynframe-rl here" in told and "PYTHONPATH=" in told


def test_an_engine_of_another_program_finds_ours_after_all_that_is_its_own(environment, tmp_path):
    (tmp_path / "rewards").mkdir()  # a mere folder is no package
    script = "import sys, dynframe_rl; dynframe_rl.offer(); import rewards, rl.policy.families; print(sys.path[-1])"
    printed, _ = python(environment, script, tmp_path)
    assert Path(printed.strip()).name == "dynframe_rl"


def test_a_configuration_that_is_not_there_is_refused_with_those_that_come_along(environment, tmp_path):
    answer = ran(environment, "dynframe", "check", "quikstart", cwd=tmp_path)
    assert answer.returncode == 2
    assert "quikstart: no such configuration file; with dynframe-rl come, named alone, " in answer.stderr
    assert all(name in answer.stderr for name in shipped_names())


def test_a_job_runs_what_the_wheel_has_installed_on_its_nodes(environment, tmp_path):
    answer = ran(environment, "dynframe", "submit", "quickstart", "--dry-run", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "entrypoint: python -m dynframe_rl train quickstart\n" in answer.stdout


@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.deepspeed
def test_two_steps_are_trained_from_a_folder_with_nothing_but_namesakes_in_it(environment, strangers):
    answer = ran(environment, "dynframe", "train", "quickstart", *SMALL, cwd=strangers, timeout_s=400)
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
    run = strangers / "runs" / "quickstart"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "seconds/step" in line] == [1, 2]
    written = [path for path in (run / "logs").rglob("*") if path.is_file()]
    assert "a stranger" not in answer.stdout + answer.stderr
    assert written and not any("a stranger" in path.read_text(errors="replace") for path in written)
