#!/usr/bin/env bash
# What others read of cluster/, read by their own programs: schemas.sh VENV PYTHON
# SkyPilot parses its task, and Kubernetes' own schema is held against the pods of the RayJob (KubeRay's is in no registry).
# Both live in a virtual environment of their own, VENV (460 MB), for their dependencies are not this project's. Where they
# cannot be installed nothing is checked, and that is said: exit code 0. A file that is refused: exit code 1.
set -euo pipefail
venv=$1 python=$2 packages="skypilot==0.14.1 kubernetes-validate==1.37.0"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

skip() { printf 'schemas: SKIPPED, nothing was checked: %s\n' "$*"; exit 0; }

if [ "$(cat "$venv/ready" 2>/dev/null)" != "$packages" ]; then
    "$python" -m venv --clear "$venv" || skip "$python cannot make a virtual environment"
    # shellcheck disable=SC2086 # two words
    timeout 600 "$venv/bin/python" -m pip --disable-pip-version-check --retries 1 install -qq --no-compile $packages ||
        skip "$packages could not be installed"
    printf '%s' "$packages" >"$venv/ready"
fi
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
HOME=$home SKYPILOT_DISABLE_USAGE_COLLECTION=1 "$venv/bin/python" cluster/schemas.py
