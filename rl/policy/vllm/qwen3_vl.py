"""Qwen3-VL inside vLLM: what differs from stock stands in rl.policy.vllm.scene_engine; DeepStack is as in stock."""

from __future__ import annotations

from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration
from vllm.multimodal import MULTIMODAL_REGISTRY

from rl.policy.vllm.inputs import SceneDummyInputs, SceneProcessingInfo, SceneProcessor
from rl.policy.vllm.scene_engine import ScenePolicy


@MULTIMODAL_REGISTRY.register_processor(SceneProcessor, info=SceneProcessingInfo, dummy_inputs=SceneDummyInputs)
class FlexiVideoQwen3VLForConditionalGeneration(ScenePolicy, Qwen3VLForConditionalGeneration):
    """Qwen3-VL with FlexiVideo's encoder, clock and token mask."""
