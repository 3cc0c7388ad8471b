#!/usr/bin/env bash
# Makes a virtual environment with everything dynframe-rl needs: setup.sh VENV cpu|gpu TORCH_VERSION PYTHON
# Needs git and Python 3.11 only, no compiler.
set -euo pipefail
venv=$1 extra=$2 torch=$3 python=$4
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

command -v git >/dev/null || fail "git is missing; install it (Debian/Ubuntu: apt-get install git)"
if ! command -v "$python" >/dev/null || ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
    python3 -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && python=python3 ||
        fail "Python 3.11 is missing; install it (Debian/Ubuntu: apt-get install python3.11 python3.11-venv), or name it: make setup PYTHON=/path/to/python3.11"
fi
"$python" -c 'import ensurepip' 2>/dev/null || fail "Python has no venv module; install it (Debian/Ubuntu: apt-get install python3.11-venv)"
[ "$(uname -s)" = Linux ] || fail "vLLM's prebuilt packages are for Linux; use a Linux machine or container"
[ "$extra" != cpu ] || "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null ||
    fail "libnuma.so.1 is missing, which vLLM's engine on CPUs needs; install it (Debian/Ubuntu: apt-get install libnuma1)"
free_mib=$(df -Pm . | awk 'NR == 2 { print $4 }')
[ "$free_mib" -ge 6000 ] || fail "6 GiB of free disk are needed here, $free_mib MiB are left"

echo "setup: creating $venv ($extra, $("$python" --version))"
"$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
export DS_BUILD_OPS=0  # DeepSpeed's compiled operators are neither needed nor built

case $extra in
cpu)
    # A local wheel (pip's configured find-links) where there is one; else PyTorch's own CPU index, asked briefly.
    echo "setup: torch $torch for CPU"
    pip install --quiet --no-index --no-deps "torch==$torch+cpu" 2>/dev/null ||
        pip install --quiet --no-deps --timeout 20 --retries 1 \
            --index-url https://download.pytorch.org/whl/cpu "torch==$torch+cpu" ||
        fail "no CPU build of torch $torch: PyTorch's CPU index is out of reach and pip's find-links holds no such wheel; put the wheel into a folder and run: PIP_FIND_LINKS=/that/folder make setup"
    echo "setup: pinned packages (about 2 GiB, minutes on a slow line)"
    pip install --quiet --no-deps -r cluster/requirements-cpu.txt
    # Builds for CUDA break `from vllm import LLM` and transformers' Qwen2.5-VL under CPU torch.
    for package in torchvision torchaudio torchcodec; do
        if pip show --quiet "$package" 2>/dev/null && ! "$venv/bin/python" -c "import $package" 2>/dev/null; then
            echo "setup: $package is built for another torch; uninstalling it"
            pip uninstall --quiet --yes "$package"
        fi
    done
    pip install --quiet --no-deps --no-build-isolation -e .
    ;;
gpu)
    pip install --quiet -e ".[gpu,dev]"
    ;;
*) fail "EXTRA must be cpu or gpu, got $extra" ;;
esac
echo "setup: done; $venv/bin/dynframe doctor reports what works here"
