"""The command line: which commands there are, and how they end.

Heavy libraries are imported by the commands that need them, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from rl import __version__
from rl.cli.arguments import EXIT_FAILED, EXIT_USAGE
from rl.cli.ask import ask
from rl.cli.check import check, config, doctor, validate_data
from rl.cli.encode_stats import encode_stats
from rl.cli.evaluate import compare, evaluate, export, report
from rl.cli.faults import chaos, verify_resume
from rl.cli.inspect import parity, rollout
from rl.cli.jobs import jobs
from rl.cli.make_checkpoint import make_checkpoint
from rl.cli.monitor import monitor
from rl.cli.prepare import prepare
from rl.cli.terminal import configure_logging, errors, say, show_tracebacks, tracebacks_shown
from rl.cli.train import cold_start, finetune, submit, train
from rl.config.errors import ConfigError
from rl.run.stop_signals import StopRequested, exit_on_signals

DEBUG, DEBUG_VARIABLE = "--debug", "DYNFRAME_DEBUG"
EPILOG = (
    "Exit codes: 0 done · 1 failed while running · 2 the command, configuration or data is wrong · 3 a check failed · "
    "130 stopped by Ctrl-C · 143 stopped by SIGTERM."
)
# what Ray prints in its own words when a worker dies, without saying which: the line of the fault says it
TOLD_BY_US = "A worker died or was killed while executing a task"
COMMANDS = {  # heading in --help -> name -> function
    "Before a run": {
        **{"doctor": doctor, "config": config, "prepare": prepare, "check": check, "validate-data": validate_data},
    },
    "Train": {"train": train, "cold-start": cold_start, "finetune": finetune, "submit": submit, "jobs": jobs},
    "Look at it, measure it, use it": {
        **{"report": report, "monitor": monitor, "ask": ask, "rollout": rollout},
        **{"eval": evaluate, "compare": compare, "export": export},
    },
    "Prove it": {
        **{"parity": parity, "verify-resume": verify_resume, "chaos": chaos, "encode-stats": encode_stats},
        "make-checkpoint": make_checkpoint,
    },
}

app = typer.Typer(
    name="dynframe",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for heading, commands in COMMANDS.items():
    for name, command in commands.items():
        app.command(name, epilog=EPILOG, rich_help_panel=heading)(command)


def print_version(wanted: bool) -> None:
    """--version: print it and end."""
    if wanted:
        say(f"dynframe {__version__}")
        raise typer.Exit


@app.callback()
def dynframe(
    debug: Annotated[
        bool,
        typer.Option(DEBUG, metavar="", envvar=DEBUG_VARIABLE, help="Show tracebacks and debug lines; works anywhere."),
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", metavar="", callback=print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Train video language models that look again.

    Start with `dynframe train configs/quickstart.yaml`: the whole loop on two CPU cores, in minutes.
    """
    if debug:
        show_tracebacks()


def main() -> None:
    """Entry point: expected failures become one clear line and an exit code; with --debug their traceback, too."""
    configure_logging()
    if not Path("/dev/nvidiactl").exists():  # or DeepSpeed, wherever it is imported, warns that it had to guess
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if not os.environ.get("RAY_ADDRESS"):  # a Ray started here listens on loopback; read once, when ray is imported
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", TOLD_BY_US)  # read once, too
    exit_on_signals()
    try:
        app(args=_debug_first(sys.argv[1:]), prog_name="dynframe")
    except (ConfigError, FileNotFoundError) as error:
        _fail(error, EXIT_USAGE)
    except StopRequested as stop:
        errors.print(f"{stop}; saved: the same command goes on from there", highlight=False)
        raise SystemExit(stop.exit_code) from None
    except KeyboardInterrupt as error:
        _fail(error, 130)
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        _fail(error, EXIT_FAILED)


def _debug_first(arguments: Sequence[str]) -> list[str]:
    """--debug is the whole program's, wherever it stands."""
    rest = [argument for argument in arguments if argument != DEBUG]
    return [DEBUG, *rest] if len(rest) < len(arguments) else rest


def _fail(error: BaseException, code: int) -> None:
    if tracebacks_shown():
        errors.print("".join(traceback.format_exception(error)), markup=False, highlight=False, soft_wrap=True)
    errors.print("[bold red]error:[/] ", end="")
    errors.print(_one_line(error), markup=False, highlight=False, soft_wrap=True)
    raise SystemExit(code)


def _one_line(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    return str(message) or type(error).__name__
