"""The terminal of a command: two consoles, what they print as it is, and which log records reach them."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from rich.console import Console
from rich.logging import RichHandler

CHATTY = ("httpx", "filelock", "urllib3", "transformers", "vllm", "DeepSpeed")  # libraries: warnings and errors only

console = Console()
errors = Console(stderr=True)


def configure_logging() -> None:
    """Send log records of level INFO and above to standard error, those of chatty libraries from WARNING on."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        handlers=[RichHandler(console=errors, show_path=False, rich_tracebacks=False)],
    )
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)


def say(text: str) -> None:
    """Print text as it is: no markup in what others wrote, no line broken in a pipe."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_json(record: dict[str, Any]) -> None:
    """Print one JSON object on a line of its own."""
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()
