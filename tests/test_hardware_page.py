"""The page of what fits which GPUs is what its generator writes today."""

from pathlib import Path

import pytest

from docs import hardware

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(autouse=True)
def at_the_repository(monkeypatch):
    monkeypatch.chdir(DOCS.parent)


def test_the_page_is_up_to_date():
    assert (DOCS / "hardware.md").read_text() == hardware.page(), "run: python docs/hardware.py"


def test_more_gpus_and_larger_ones_never_fit_less():
    def tokens(size, count, gpu):
        fit = hardware.first_fit(size, count, gpu)
        return int(fit.told.partition("k")[0]) if fit else 0

    for size in (hardware.published_size("qwen2_5_vl", "7b"), hardware.published_size("qwen3_vl", "2b")):
        found = [[tokens(size, count, gpu) for gpu in hardware.MEMORY.values()] for count in hardware.NUMBERS]
        assert all(row == sorted(row) for row in found)
        assert all(list(column) == sorted(column) for column in zip(*found, strict=True))
