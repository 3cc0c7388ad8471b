"""Where rows keep their bits: for several processors, which row paddings make a matrix product batch-invariant.

    python benchmarks/batch_invariance.py                      a table of every emulation
    python benchmarks/batch_invariance.py --only "AVX2"        of those whose name contains it

Processors are emulated by the settings with which MKL, oneDNN and ATen choose their kernels, each in a process of its
own, for they are read at import. MKL gives processors that are not Intel's its generic kernels, whatever the settings
say; there "as Intel" preloads two functions that answer MKL's question for the vendor with yes (a C compiler is
needed), so that the kernels of an Intel processor with the same instructions run. Nothing in the product does that.

A cell: "holds", or for how many of the tried products (shapes, with and without a bias) a row's bits changed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHAPES = ((256, 256), (768, 256), (128, 512), (2048, 192), (151, 96))
PADDINGS = ("1", "4", "8", "16", "32", "64", "blocks of 32", "blocks of 64")
KERNELS = ("RMS norm", "layer norm", "SiLU", "log-softmax")
VENDOR = "int mkl_serv_intel_cpu(void) { return 1; }\nint mkl_serv_intel_cpu_true(void) { return 1; }\n"


@dataclass(frozen=True, slots=True)
class Emulation:
    """Settings that choose kernels."""

    settings: Mapping[str, str]
    as_intel: bool = False

    def __str__(self) -> str:
        named = " ".join(f"{name}={value}" for name, value in self.settings.items()) or "no settings"
        return f"as Intel, {named}" if self.as_intel else named


EMULATIONS = (
    Emulation({}),
    Emulation({"MKL_CBWR": "COMPATIBLE"}),
    Emulation({"MKL_CBWR": "AVX2"}),
    Emulation({"MKL_ENABLE_INSTRUCTIONS": "AVX2"}),
    Emulation({"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}),
    Emulation({"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}),
    Emulation({}, as_intel=True),
    Emulation({"MKL_ENABLE_INSTRUCTIONS": "AVX2"}, as_intel=True),
    Emulation({"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}, as_intel=True),
    Emulation({"MKL_CBWR": "AVX2"}, as_intel=True),
    Emulation({"MKL_CBWR": "AVX2,STRICT"}, as_intel=True),
    Emulation({"MKL_CBWR": "COMPATIBLE"}, as_intel=True),
)


def measure() -> dict[str, str]:
    """What holds in this process: by padding, and by kernel."""
    import torch
    from torch.nn import functional

    from rl.policy.batch_invariant import BatchInvariantLinear, RowPadding, linear_varies, rows_vary

    found = {}
    random = torch.Generator().manual_seed(4)
    weights = [torch.randn(shape, generator=random) for shape in SHAPES]
    for name in PADDINGS:
        product = BatchInvariantLinear(RowPadding(int(name.rpartition(" ")[2]), fixed=name.startswith("blocks")))
        found[name] = _cell(sum(linear_varies(product, weight) for weight in weights), len(weights))
    rows_ND = torch.randn(300, 256, generator=random)
    kernels = (
        lambda x: x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + 1e-6),
        lambda x: functional.layer_norm(x, x.shape[-1:]),
        lambda x: functional.silu(x[:, :128]) * x[:, 128:],
        lambda x: torch.log_softmax(x, dim=-1),
    )
    for name, kernel in zip(KERNELS, kernels, strict=True):
        found[name] = _cell(int(rows_vary(kernel, rows_ND)), 1)
    return found


def emulate(emulation: Emulation, folder: Path) -> dict[str, str] | None:
    """What holds under an emulation; None: it needs a C compiler, and there is none."""
    environment = os.environ | dict(emulation.settings) | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if emulation.as_intel:
        library = intel_vendor(folder)
        if library is None:
            return None
        environment["LD_PRELOAD"] = str(library)
    command = [sys.executable, __file__, "--here"]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def intel_vendor(folder: Path) -> Path | None:
    """A library that makes MKL take this processor for one of Intel's; None without a C compiler."""
    compiler, library = shutil.which("cc"), folder / "vendor.so"
    if compiler and not library.is_file():
        source = folder / "vendor.c"
        source.write_text(VENDOR, encoding="utf-8")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return library if compiler else None


def table(only: str) -> Iterator[str]:
    """Markdown, a row per emulation."""
    yield f"| settings | {' | '.join((*PADDINGS, *KERNELS))} |"
    yield f"|---|{'---|' * (len(PADDINGS) + len(KERNELS))}"
    with tempfile.TemporaryDirectory() as folder:
        for emulation in (emulation for emulation in EMULATIONS if only in str(emulation)):
            found = emulate(emulation, Path(folder))
            absent = ("needs a C compiler", *[""] * (len(PADDINGS) + len(KERNELS) - 1))
            cells = absent if found is None else found.values()
            yield f"| {emulation} | {' | '.join(cells)} |"


def _cell(varying: int, tried: int) -> str:
    return f"{varying} of {tried}" if varying else "holds"


def main() -> None:
    """Print the table, or what holds here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a part of an emulation's name")
    parser.add_argument("--here", action="store_true", help="no emulation: what holds in this process, as JSON")
    chosen = parser.parse_args()
    if chosen.here:
        sys.stdout.write(json.dumps(measure()) + "\n")
        return
    from rl.policy.kernels import processor

    sys.stdout.write(f"{processor()}\n\n")
    for line in table(chosen.only):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
