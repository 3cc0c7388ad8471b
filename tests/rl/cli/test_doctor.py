"""What `dynframe doctor` says of a machine with a GPU."""

import subprocess

import pytest

from rl.cli import doctor
from rl.run.preflight.findings import Level


@pytest.fixture
def gpu_machine(monkeypatch, tmp_path):
    """With one GPU, and such compilers on its PATH as are named."""

    def machine(*compilers, cc=""):
        (tmp_path / "nvidiactl").touch()
        monkeypatch.setattr(doctor, "GPU_DEVICE", tmp_path / "nvidiactl")
        answer = subprocess.CompletedProcess([], 0, stdout="NVIDIA H100, 81559 MiB, 550.54\n", stderr="")
        monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: answer)
        monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}" if name in compilers else None)
        monkeypatch.delenv("CC", raising=False)
        if cc:
            monkeypatch.setenv("CC", cc)
        return {finding.subject: finding for finding in doctor._gpu()}

    return machine


@pytest.mark.parametrize(
    ("machine", "detail"),
    [
        ({"compilers": ("gcc", "clang")}, "/usr/bin/gcc"),
        ({"compilers": ("clang",)}, "/usr/bin/clang"),
        ({"compilers": (), "cc": "/opt/gcc"}, "/opt/gcc"),
        ({"compilers": ()}, "none, and engines on GPUs need one: install gcc, or set CC"),
    ],
)
def test_a_gpu_needs_a_compiler_for_the_launchers_of_its_kernels(machine, detail, gpu_machine):
    found = gpu_machine(*machine["compilers"], cc=machine.get("cc", ""))
    assert found["gpu"].detail == "NVIDIA H100, 81559 MiB, 550.54"
    assert found["compiler"].detail == detail
    assert (found["compiler"].level is Level.FAILED) == detail.startswith("none")


def test_no_compiler_is_looked_for_where_there_is_no_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "GPU_DEVICE", tmp_path / "nothing")
    assert [finding.subject for finding in doctor._gpu()] == ["gpu"]
