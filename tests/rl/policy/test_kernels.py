"""What a process computes with: named, compared, and different where bits are."""

import json
import os
import subprocess
import sys
from pathlib import Path

from rl.policy import kernels
from rl.policy.kernels import kernel_changes, kernel_identity, processor

CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8481C
stepping\t: 8
"""


def test_a_processor_has_the_name_that_the_system_gives_it(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    assert processor() == "Intel(R) Xeon(R) Platinum 8481C (GenuineIntel 6/143/8)"
    (tmp_path / "cpuinfo").write_text("")
    assert processor()


def test_equal_kernels_have_no_changes_and_others_are_named():
    here = kernel_identity("multiples of 64 rows")
    assert kernel_changes(here, kernel_identity("multiples of 64 rows")) == []
    assert kernel_changes(here, here | {"products": "blocks of 64 rows"}) == [
        "products: multiples of 64 rows -> blocks of 64 rows"
    ]
    assert kernel_changes({}, {"torch": "2.13.0"}) == ["torch: (unknown) -> 2.13.0"]


def test_a_setting_that_chooses_other_kernels_is_named_and_changes_the_sample():
    code = "import json; from rl.policy.kernels import kernel_identity; print(json.dumps(kernel_identity('')))"
    environment = os.environ | {"MKL_CBWR": "COMPATIBLE", "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    changed = [change.partition(":")[0] for change in kernel_changes(kernel_identity(""), json.loads(done.stdout))]
    assert changed == ["settings", "sample"]
