"""The command line itself: help that teaches, the version, the reference of keys, tracebacks on request only."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rl import __version__
from rl.cli.main import COMMANDS, app

REPOSITORY = Path(__file__).parents[3]
NAMES = [name for commands in COMMANDS.values() for name in commands]
HEAVY = {"torch", "transformers", "vllm", "ray", "deepspeed", "av", "numpy", "matplotlib"}


def run(*arguments):
    """In this process, at a width of 200."""
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)


def process(program, *arguments, **environment):
    return subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_lists_every_command_with_one_line_and_how_to_start():
    answer = run("--help").stdout
    assert all(f" {name} " in answer for name in NAMES)
    assert "dynframe train configs/quickstart.yaml" in answer and "Exit codes: 0 done" in answer


@pytest.mark.parametrize("command", NAMES)
def test_help_of_a_command_teaches(command):
    answer = run(command, "--help")
    assert answer.exit_code == 0 and "Exit codes: 0 done" in answer.stdout
    assert command == "doctor" or f"Example: dynframe {command} " in answer.stdout


def test_the_version_is_that_of_the_package():
    assert run("--version").stdout == f"dynframe {__version__}\n"


@pytest.mark.parametrize("arguments", [("train", "--help"), ("config",)])
def test_what_needs_no_heavy_library_imports_none(arguments):
    program = "import sys; from rl.cli.main import main\ntry: main()\nfinally: print(sorted(sys.modules))"
    answer = process(["-c", program], *arguments)
    assert not HEAVY & set(ast.literal_eval(answer.stdout.splitlines()[-1]))


def test_config_lists_keys_as_tables_markdown_or_json():
    table = run("config", "rollout.engine").stdout
    assert "max_model_len" in table and "2048" in table and "group_size" not in table
    assert "| `rollout.engine.max_model_len` | integer | `2048` | tokens |" in run("config", "--markdown").stdout
    sections = json.loads(run("config", "policy", "--json").stdout)["sections"]
    assert [section["name"] for section in sections] == ["policy", "policy.tiny", "policy.scenes", "policy.lora"]
    assert "no section 'roll'; did you mean 'rollout'?" in str(run("config", "roll").exception)


@pytest.mark.parametrize("arguments", [("--debug", "check", "absent.yaml"), ("check", "absent.yaml", "--debug")])
def test_debug_shows_the_traceback_wherever_it_stands(arguments):
    answer = process(["-m", "rl"], *arguments)
    assert answer.returncode == 2 and "Traceback" in answer.stderr
    assert answer.stderr.splitlines()[-1].startswith("error: absent.yaml: no such configuration file")


def test_without_debug_a_mistake_is_one_line_and_with_its_variable_it_has_a_traceback():
    (mistake,) = process(["-m", "rl"], "check", "absent.yaml").stderr.splitlines()
    assert mistake.startswith("error: absent.yaml: no such configuration file; with dynframe-rl come, named alone, ")
    assert "Traceback" in process(["-m", "rl"], "check", "absent.yaml", DYNFRAME_DEBUG="1").stderr
