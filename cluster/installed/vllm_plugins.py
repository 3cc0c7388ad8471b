"""The entry points `vllm.general_plugins`, which vLLM calls in every process of every engine in the environment.

Most of these are other people's: there the project's packages come after everything else, or not at all.
"""

from __future__ import annotations

import importlib
import logging
import os

from dynframe_rl import HOME, ForeignPackageError, activate, offer

log = logging.getLogger(__name__)


def register_policies() -> None:
    """Make policies with FlexiVideo known to vLLM."""
    _register("rl.policy.vllm.plugin")


def register_videos() -> None:
    """Make the decoder of coarse frames known to vLLM."""
    _register("rl.serving.plugin")


def _register(module: str) -> None:
    is_ours = str(HOME) in os.environ.get("PYTHONPATH", "").split(os.pathsep)
    try:
        if is_ours:
            activate()
        else:
            offer()
    except ForeignPackageError as clash:
        log.warning("vLLM will not know the policies of dynframe-rl here: %s", clash)
        return
    importlib.import_module(module).register()
