"""Which log records reach the terminal, and where the others can be found."""

import io
import logging
import warnings

import pytest
from rich.console import Console

from rl.cli.terminal import TerminalLog
from rl.tracking.log_file import FILE_ONLY, EarlyRecords, keep_log


@pytest.fixture
def root():
    """The root logger with handlers of its own."""
    logger = logging.getLogger()
    before, level = list(logger.handlers), logger.level
    logger.handlers = []
    logger.setLevel(logging.INFO)
    logging.captureWarnings(True)
    yield logger
    logging.captureWarnings(False)
    logger.handlers = before
    logger.setLevel(level)


@pytest.fixture
def shown(root):
    console = Console(file=io.StringIO(), width=80, soft_wrap=True)
    root.addHandler(TerminalLog(console))
    return lambda: [line[9:] for line in console.file.getvalue().splitlines()]  # without the time


def test_the_terminal_shows_our_lines_and_only_errors_of_libraries(shown):
    logging.getLogger("rl.run.train").info("checkpoint of step %d: %s", 3, "x" * 200)
    logging.getLogger("actors.reward").warning("worker lost")
    logging.getLogger("some.library").warning("no kernel for this GPU")
    logging.getLogger("some.library").error("engine failed")
    logging.getLogger(FILE_ONLY).error("stacks of every thread")
    warnings.warn("torch.foo is deprecated", FutureWarning, stacklevel=1)
    assert shown() == [f"checkpoint of step 3: {'x' * 200}", "warning: worker lost", "error: engine failed"]


def test_the_log_file_has_what_the_terminal_does_not_show_from_the_start_of_the_process_on(root, shown, tmp_path):
    root.addHandler(EarlyRecords())
    logging.getLogger("some.library").warning("no kernel for this GPU")
    with keep_log(tmp_path) as path:
        warnings.warn("torch.foo is deprecated", FutureWarning, stacklevel=1)
    text = path.read_text()
    assert path.parent == tmp_path / "logs"
    assert "WARNING some.library: no kernel for this GPU" in text and "torch.foo is deprecated" in text
    assert shown() == []


def test_the_log_file_has_the_traceback_of_what_ends_a_run(root, tmp_path):
    with pytest.raises(ZeroDivisionError), keep_log(tmp_path) as path:
        raise ZeroDivisionError("division by zero")
    assert "Traceback" in path.read_text() and "ZeroDivisionError: division by zero" in path.read_text()


def test_a_full_disk_costs_lines_of_the_log_file_and_nothing_else(root, tmp_path, capsys):
    with keep_log(tmp_path):
        (file,) = [handler for handler in root.handlers if isinstance(handler, logging.FileHandler)]
        file.stream.close()
        file.stream = open("/dev/full", "w", buffering=1)  # noqa: SIM115 - the handler closes it
        logging.getLogger("rl").info("a line")
        file.stream = None
    assert capsys.readouterr().err == ""
