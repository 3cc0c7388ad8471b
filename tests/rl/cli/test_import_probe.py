"""Imports tried in a process of their own: one that fails, ends the process or takes too long hides no other."""

import pytest

from rl.cli import doctor, import_memory
from rl.cli.import_probe import Outcome, Probe, probe_imports
from rl.run.preflight.findings import Level


@pytest.fixture(autouse=True)
def memory(monkeypatch, tmp_path):
    """Of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "dynframe" / "imports.json"


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


TRIES = {"good": "open({home!r}, 'a').write('tried ')", "bad": "import nothing_of_that_name"}


def tried(monkeypatch, home, **options):
    """What `doctor` says of an import that works, and leaves a trace, and of one that fails."""
    monkeypatch.setattr(doctor, "CUDA_ONLY_BUILDS", ())
    statements = {name: statement.format(home=str(home)) for name, statement in TRIES.items()}
    monkeypatch.setattr(doctor, "HEAVY_IMPORTS", statements)
    return {finding.subject: finding for finding in doctor._imports(**options)}


def test_an_import_that_worked_is_not_tried_again_until_something_changes_and_one_that_failed_is(
    monkeypatch, tmp_path, memory
):
    trace = tmp_path / "trace"
    first, second = tried(monkeypatch, trace), tried(monkeypatch, trace)
    assert trace.read_text() == "tried " and first["good"].detail == "yes"
    assert second["good"].level is Level.OK and "nothing has changed since" in second["good"].detail
    assert first["bad"].level is second["bad"].level is Level.FAILED and '"bad"' not in memory.read_text()

    assert tried(monkeypatch, trace, again=True)["good"].detail == "yes"
    assert trace.read_text() == "tried tried "

    package = tmp_path / "site" / "other-1.0.dist-info"
    package.mkdir(parents=True)
    monkeypatch.syspath_prepend(package.parent)  # another package has been installed
    assert tried(monkeypatch, trace)["good"].detail == "yes" and trace.read_text() == "tried tried tried "


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": "x"}', '{"key": KEY, "worked": {"good": "never"}}'])
def test_a_memory_that_cannot_be_read_is_none(text, memory):
    memory.parent.mkdir()
    memory.write_text(text.replace("KEY", '"k"'))
    assert import_memory.remembered("k") == {}


def test_where_nothing_can_be_written_nothing_is_remembered(monkeypatch, tmp_path):
    (tmp_path / "dynframe").write_text("a file is in the way")
    trace = tmp_path / "trace"
    tried(monkeypatch, trace)
    assert tried(monkeypatch, trace)["good"].detail == "yes" and trace.read_text() == "tried tried "
