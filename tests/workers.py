"""A pytest plug-in for `pytest -n`: which tests share a worker process, and in which order files are handed out.

A file's tests stay together, for their fixtures' sake, and files that use the same training runs do, too. The longest
come first, so that two workers end at about the same time.
"""

import pytest

SHARED_RUNS = ("tests/test_exact_resume.py", "tests/test_faults.py")  # read the runs of tests/proof_run.py
LONGEST_FIRST = (
    *SHARED_RUNS,
    "tests/test_run.py",
    "tests/benchmarks/test_programs.py",
    "tests/actors/engine/test_engine.py",
    "tests/test_evaluation.py",
    "tests/rl/learner/test_learner.py",
    "tests/actors/test_rollout.py",
    "tests/test_phases.py",
    "tests/test_slurm.py",
    "tests/test_nodes.py",
    "tests/test_wheel.py",
    "tests/test_notebook.py",
    "tests/rl/cli/test_cli.py",
    "tests/envs/video/test_hostile_video.py",
    "tests/actors/cluster/test_placement.py",
    "tests/rl/config/test_hostile_config.py",
    "tests/actors/test_device_transfer.py",
    "tests/test_finetune.py",
    "tests/test_serving.py",
    "tests/rl/policy/vllm/test_live_weights.py",
    "tests/test_hostile_text.py",
    "tests/test_report_in_browser.py",
)


def pytest_collection_modifyitems(config, items):
    """Files by length; within one, tests stay as they are. One process runs them as they stand in their folders."""
    if not config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.nodeid.split("::")[0], len(places)))


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """One worker per file, or per files that share runs."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            name = nodeid.split("::")[0]
            return SHARED_RUNS[0] if name in SHARED_RUNS else name

    config.option.loadscopereorder = False
    return Together(config, log)
