"""Imports of heavy libraries: the collector stands aside, and is afterwards as it was."""

import gc

import pytest

from rl.run.imports import uncollected


@pytest.fixture(autouse=True)
def collector():
    was_enabled = gc.isenabled()
    yield
    gc.unfreeze()
    gc.enable() if was_enabled else gc.disable()


@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_is_collected_meanwhile_and_what_stands_afterwards_is_never_looked_at(enabled):
    gc.enable() if enabled else gc.disable()
    with uncollected():
        assert not gc.isenabled()
        module = {"of": ["many", "objects"]}

    assert gc.isenabled() is enabled
    assert gc.get_freeze_count() > 0
    assert not any(tracked is module for tracked in gc.get_objects())


def test_an_import_that_fails_leaves_the_collector_on():
    gc.enable()
    with pytest.raises(ModuleNotFoundError), uncollected():
        import no_such_module  # noqa: F401

    assert gc.isenabled()
