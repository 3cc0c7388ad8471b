"""Qwen2.5-VL inside vLLM: what differs from stock stands in rl.policy.vllm.scene_engine."""

from __future__ import annotations

from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from vllm.multimodal import MULTIMODAL_REGISTRY

from rl.policy.vllm.inputs import SceneDummyInputs, SceneProcessingInfo, SceneProcessor
from rl.policy.vllm.scene_engine import ScenePolicy


@MULTIMODAL_REGISTRY.register_processor(SceneProcessor, info=SceneProcessingInfo, dummy_inputs=SceneDummyInputs)
class FlexiVideoForConditionalGeneration(ScenePolicy, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL with FlexiVideo's encoder, clock and token mask."""

    one_grid_per_scene = True  # the stock tower keeps a table of angles on the GPU for every grid it has seen
