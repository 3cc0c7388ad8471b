"""Imports tried in a process of their own: one that fails, ends the process or takes too long hides no other."""

from rl.cli import doctor
from rl.cli.import_probe import Outcome, Probe, probe_imports
from rl.run.preflight.findings import Level


def test_every_import_has_an_answer_whatever_the_others_do():
    found = probe_imports(
        {
            "json": "import json; print('chatter')",
            "absent": "import nothing_of_that_name",
            "shared": "json.dumps({})",  # what was imported before it is still there
            "crash": "import os, sys; print('illegal instruction', file=sys.stderr, flush=True); os._exit(132)",
            "math": "import math",
        },
        timeout_s=60.0,
    )
    assert found == {
        "json": Probe(Outcome.WORKS),
        "absent": Probe(Outcome.FAILS, "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        "shared": Probe(Outcome.WORKS),
        "crash": Probe(Outcome.FAILS, "the process ended (132): illegal instruction"),
        "math": Probe(Outcome.WORKS),
    }


def test_what_does_not_answer_in_time_is_slow_and_not_broken(monkeypatch):
    for_ever = "import threading; threading.Event().wait()"
    monkeypatch.setattr(doctor, "CUDA_ONLY_BUILDS", ())
    monkeypatch.setattr(doctor, "HEAVY_IMPORTS", {"vllm imports": for_ever, "deepspeed imports": "import math"})
    monkeypatch.setattr(doctor, "IMPORT_S", 1.0)
    findings = doctor._imports()
    assert [(finding.subject, finding.level) for finding in findings] == [
        ("vllm imports", Level.NOTE),
        ("deepspeed imports", Level.NOTE),
    ]
    assert "slow or busy; nothing is known to be wrong" in findings[0].detail


def test_a_package_built_for_another_torch_comes_with_its_remedy():
    finding = doctor._import_finding("torchvision imports", Probe(Outcome.FAILS, "RuntimeError: no operator nms"))
    assert finding.level is Level.FAILED
    assert finding.detail == "RuntimeError: no operator nms; built for another torch? run: pip uninstall torchvision"
