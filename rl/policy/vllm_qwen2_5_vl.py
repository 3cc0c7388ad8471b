"""Qwen2.5-VL inside vLLM; what it does differently from stock stands in rl.policy.vllm_model."""

from __future__ import annotations

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFeatureSpec

from rl.policy.vllm_inputs import SceneDummyInputs, SceneProcessingInfo, SceneProcessor
from rl.policy.vllm_model import SceneEngine


@MULTIMODAL_REGISTRY.register_processor(SceneProcessor, info=SceneProcessingInfo, dummy_inputs=SceneDummyInputs)
class FlexiVideoForConditionalGeneration(Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL with FlexiVideo's encoder, clock and token mask."""

    supports_mm_device_do_normalize = False  # or vLLM normalises our embeddings again

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.scene_engine = SceneEngine(self, vllm_config)

    def embed_multimodal(self, **fields: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Visual tokens of each item, in order."""
        return self.scene_engine.encode(fields)

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[MultiModalFeatureSpec]
    ) -> tuple[torch.Tensor, int]:
        """The learner's positions, and by how much generated tokens are ahead."""
        return self.scene_engine.positions(input_tokens, mm_features)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Logits over the vocabulary; -inf where the policy may not write."""
        return self.scene_engine.mask(super().compute_logits(hidden_states))
