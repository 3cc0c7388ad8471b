"""Workers share GPUs as Ray deals them, and a GPU is known by its name."""

import pytest

from rl.config.errors import ConfigError
from rl.memory_plan.gpus import by_content, found_gpu_gib, gpu_gib, share_gpus


@pytest.mark.parametrize(
    ("engines", "engine_share", "learners", "learner_share", "found"),
    [  # (engines, learners) of a GPU, and how many GPUs have them
        (2, 1, 6, 1, [((1, 0), 2), ((0, 1), 6)]),
        (2, 0.5, 2, 0.5, [((1, 1), 2)]),  # never two ranks on a GPU
        (3, 0.25, 2, 0.5, [((2, 1), 1), ((1, 1), 1)]),
        (1, 1, 2, 0.5, [((1, 0), 1), ((0, 1), 2)]),
        (3, 0.5, 0, 0.5, [((2, 0), 1), ((1, 0), 1)]),  # a part goes where least is left
        (1, 0.4, 1, 0.6, [((1, 1), 1)]),
        (4, 0.3, 4, 0.7, [((1, 1), 4)]),
        (1, 2, 1, 1, [((1, 0), 2), ((0, 1), 1)]),  # tensor parallel
        (2, 0, 2, 0, []),
        (2, 0, 2, 1, [((0, 1), 2)]),
    ],
)
def test_workers_on_gpus(engines, engine_share, learners, learner_share, found):
    shared = share_gpus(engines, engine_share, learners, learner_share)
    assert [((gpu.engines, gpu.learners), count) for gpu, count in by_content(shared)] == found


def test_names_are_known_or_refused_with_the_key_for_others():
    assert gpu_gib("a100-40gb") == 40
    with pytest.raises(ConfigError, match=r"placement\.gpu: unknown 'h100'; known are l4-24gb, .*placement\.gpu_mem"):
        gpu_gib("h100")


def test_a_machine_without_a_driver_has_none(tmp_path):
    assert found_gpu_gib(tmp_path / "nvidiactl") == 0


def test_the_smallest_gpu_of_a_machine_counts(tmp_path, monkeypatch):
    answer = tmp_path / "nvidia-smi"
    answer.write_text("#!/bin/sh\nprintf '81920\\n40960\\n'\n")
    answer.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert found_gpu_gib(tmp_path) == 40
    answer.write_text("#!/bin/sh\nexit 9\n")
    assert found_gpu_gib(tmp_path) == 0
