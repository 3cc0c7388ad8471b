#!/usr/bin/env bash
# Known vulnerabilities of the pinned packages, by pip-audit from PyPI's own advisories: audit.sh VENV PYTHON
# pip-audit lives in a virtual environment of its own, VENV. Where PyPI is out of reach nothing is checked, and that is said:
# exit code 0, for a network that is away is no vulnerability. Findings: exit code 1.
set -euo pipefail
venv=$1 python=$2 version=2.10.1
cd "$(dirname "${BASH_SOURCE[0]}")/.."

skip() { printf 'audit: SKIPPED, nothing was checked: %s\n' "$*"; exit 0; }

ask='import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=20).read()'
advisories=${AUDIT_INDEX:-https://pypi.org}/pypi/pip-audit/$version/json
timeout 40 "$python" -c "$ask" "$advisories" 2>/dev/null || skip "no answer from $advisories"
if ! [ -x "$venv/bin/pip-audit" ]; then
    "$python" -m venv "$venv"
    timeout 300 "$venv/bin/python" -m pip --disable-pip-version-check install --quiet "pip-audit==$version" ||
        skip "pip-audit $version could not be installed"
fi
"$venv/bin/pip-audit" --requirement cluster/requirements-cpu.txt --no-deps --disable-pip --vulnerability-service pypi --progress-spinner off
