"""Fixtures shared by all rooms: one tiny policy, one Ray cluster and the real clips, each made once per session."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two threads on two busy cores are fifty times slower
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # as where a run starts Ray: no idle worker per CPU

import pytest
from hypothesis import settings

from tests.calibration import within

settings.register_profile("any machine", deadline=None)  # on busy cores a deadline per example measures the neighbours
settings.load_profile("any machine")

REPOSITORY = Path(__file__).parents[1]
pytest_plugins = ("tests.browser", "tests.stop_signals", "tests.workers")


def pytest_addoption(parser):
    parser.addoption(
        "--no-determinism",
        action="store_true",
        help="test as on a machine where rollout.deterministic is refused: exact tests are skipped, the others run",
    )


@pytest.fixture(scope="session")
def real_data_dir() -> Path:
    """Real clips and annotations; tests that need them are skipped, with this reason, where they are absent."""
    folder = Path(os.environ.get("DYNFRAME_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; set DYNFRAME_REAL_DATA")
    return folder


@pytest.fixture(scope="session")
def ray_cluster():
    """A Ray of our own on loopback, with more logical CPUs than cores: workers take turns."""
    import ray

    ray.init(
        "local",  # whatever else runs on this machine
        num_cpus=8,
        object_store_memory=256 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session", params=[0, pytest.param(1, marks=pytest.mark.soak)], ids=["lag 0", "lag 1"])
def lag(request):
    """trainer.max_policy_lag of the runs of tests/proof_run.py; with 1, at each checkpoint the next step is sampled."""
    return request.param


@pytest.fixture(scope="session")
def proof_cache(tmp_path_factory):
    """Clips, policy and cold start, which all these runs have in common."""
    return tmp_path_factory.mktemp("proof-cache")


@pytest.fixture(scope="session")
def proof_home(tmp_path_factory, lag):
    """Where the runs lie."""
    return tmp_path_factory.mktemp(f"proof-{lag}-")


@pytest.fixture(scope="session")
def proof_overrides(lag, proof_cache):
    """What they have in common beyond tests/proof_run.py."""
    return f"trainer.max_policy_lag={lag}", f"cache_dir={proof_cache}"


@pytest.fixture(scope="session")
def refusal(request):
    """Why `rollout.deterministic` is refused on this machine; empty where it can be kept. An engine is asked once."""
    from tests.determinism import ask_engine

    return ask_engine(*(["--unpadded"] if request.config.getoption("--no-determinism") else []))["refusal"]


@pytest.fixture
def exact(refusal):
    """For tests of bits: skipped, with the engine's reason, where they cannot be kept."""
    if refusal:
        pytest.skip(refusal)


@pytest.fixture(scope="session")
def proof_runs(proof_home, proof_overrides, refusal):
    from tests.proof_run import runs_in

    return runs_in(proof_home, *proof_overrides, deterministic=not refusal)


@pytest.fixture(scope="session")
def uninterrupted(proof_runs):
    """The steps of the uninterrupted run; it also makes clips, policy and cold start, which the other runs reuse."""
    return proof_runs.straight()


def pytest_collection_modifyitems(config, items):
    """A test may take longer on a busy machine. GPU tests say why they are skipped, without importing torch."""
    limit_s = within(float(config.getini("timeout")))
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(limit_s))
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_tests and not Path("/dev/nvidiactl").exists():
        for item in gpu_tests:
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))
