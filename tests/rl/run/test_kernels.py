"""A deterministic run names its kernels, refuses workers that differ, and says so when it resumes with others."""

import pytest

from rl.checkpoint.checkpoint import KERNELS, read_kernels
from rl.checkpoint.manifest import DamagedError
from rl.checkpoint.store import CheckpointStore
from rl.config.errors import ConfigError
from rl.run.kernels import common_kernels
from rl.trajectory import RunState

HERE = {"processor": "AMD EPYC", "instructions": "AVX512", "products": "multiples of 64 rows", "sample": "aa"}
THERE = HERE | {"processor": "Intel Xeon", "sample": "bb"}


class Workers:
    """Rollout workers with these kernels."""

    def __init__(self, *kernels):
        self._kernels = kernels

    def kernels(self, *, timeout_s):
        return {f"rollout/{index}": kernels for index, kernels in enumerate(self._kernels)}


def saved(folder, kernels):
    store = CheckpointStore(folder)
    return store.commit(store.begin(3), RunState(3, 3, 0), "seed: 0", kernels=kernels)


def test_a_start_names_row_padding_and_processor():
    said = []
    assert common_kernels(Workers(HERE, HERE), None, said.append) == HERE
    assert said == ["deterministic: products in multiples of 64 rows, on AMD EPYC with AVX512"]


def test_workers_with_different_kernels_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"rollout/0 and rollout/2 .*processor: AMD EPYC -> Intel Xeon"):
        common_kernels(Workers(HERE, HERE, THERE), None, lambda line: None)


def test_a_resume_on_another_machine_says_so_in_one_line(tmp_path):
    said = []
    common_kernels(Workers(HERE), saved(tmp_path, THERE), said.append)
    assert said[1].startswith("step_00000003 was computed with other kernels")
    assert said[1].endswith("processor: Intel Xeon -> AMD EPYC; sample: bb -> aa")


def test_a_resume_with_the_same_kernels_says_nothing(tmp_path):
    said = []
    common_kernels(Workers(HERE), saved(tmp_path, HERE), said.append)
    assert len(said) == 1


def test_a_checkpoint_of_a_run_that_was_not_deterministic_has_no_kernels(tmp_path):
    assert read_kernels(saved(tmp_path, None).folder) == {}


@pytest.mark.parametrize("text", ["{", "[1]", '{"torch": 2}'])
def test_kernels_that_cannot_be_read_are_damage(tmp_path, text):
    folder = saved(tmp_path, HERE).folder
    (folder / KERNELS).write_text(text)
    with pytest.raises(DamagedError, match=r"kernels\.json"):
        read_kernels(folder)
