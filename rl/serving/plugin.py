"""vLLM's way to decode videos for a policy: the entry point `vllm.general_plugins` calls `register` in every process.

vLLM chooses a decoder by the `video_processor_type` in a folder's preprocessor files, which an export writes; for other
folders, `--media-io-kwargs '{"video": {"video_backend": "dynframe"}}'` chooses it.
"""

from __future__ import annotations

import importlib

from rl.policy.episode_settings import VIDEO_PROCESSOR

VIDEO_BACKEND = "dynframe"


def register() -> None:
    """Make the decoder of coarse frames known to vLLM."""
    registry = importlib.import_module("vllm.multimodal.video").VIDEO_LOADER_REGISTRY
    loader = importlib.import_module("rl.serving.video_loader").CoarseFramesLoader
    registry.register(VIDEO_BACKEND, video_processor=VIDEO_PROCESSOR)(loader)
