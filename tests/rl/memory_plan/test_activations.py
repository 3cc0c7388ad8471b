"""What the plan says of activations is what autograd saves, counted on fake tensors at real widths."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLDecoderLayer
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextDecoderLayer

from rl.encode_stats.peak_memory import PeakMemory
from rl.memory_plan.activations import head_bytes, layer_saved, layer_working
from rl.policy.scoring_head import Scoring, ScoringHead
from rl.policy.sizes import BY_NAME
from rl.policy.stock.hub_files import model_config
from rl.policy.structure import read_structure

TOKENS = 65_536  # so many that the layer's own weights do not matter
LAYERS = {"qwen2_5_vl": Qwen2_5_VLDecoderLayer, "qwen3_vl": Qwen3VLTextDecoderLayer}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def in_dtype(dtype, make):
    torch.set_default_dtype(dtype)
    try:
        return make()
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("name", [("qwen2_5_vl", "3b"), ("qwen2_5_vl", "7b"), ("qwen3_vl", "4b"), ("qwen3_vl", "8b")])
def test_a_language_layer_saves_and_takes_what_is_planned(name, dtype):
    found = model_config(BY_NAME[name].cut(1, 1))
    language = read_structure(found, "config.json", init_frames=6).language
    text = AutoConfig.for_model(name[0], **{k: v for k, v in found.items() if k != "model_type"}).text_config
    text._attn_implementation = "sdpa"
    with FakeTensorMode():
        layer = in_dtype(dtype, lambda: LAYERS[name[0]](text, 0)).train()
        hidden = torch.randn(1, TOKENS, language.hidden, dtype=dtype, requires_grad=True)
        rotary = (torch.randn(1, TOKENS, language.head_dim, dtype=dtype),) * 2
        own = {parameter.untyped_storage()._cdata for parameter in layer.parameters()}
        saved = {}

        def note(tensor):
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                saved[storage._cdata] = storage.nbytes()
            return tensor

        with PeakMemory([*layer.parameters(), hidden, *rotary]) as memory:
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                output = layer(hidden, attention_mask=None, position_embeddings=rotary)
            memory.peak_bytes = 0
            output.sum().backward()

    planned = layer_saved(language, dtype.itemsize)
    assert sum(saved.values()) / TOKENS == pytest.approx(planned, rel=0.01)
    peak = memory.peak_bytes / TOKENS + dtype.itemsize * language.hidden  # with the layer's input
    assert peak == pytest.approx(planned + layer_working(language, dtype.itemsize), rel=0.04)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("scored", [512, 2048, 5000])
def test_the_head_takes_five_copies_of_a_chunks_logits(dtype, scored):
    language = read_structure(model_config(BY_NAME["qwen3_vl", "4b"]), "config.json", init_frames=6).language
    with FakeTensorMode():
        head = in_dtype(dtype, lambda: ScoringHead(64, language.vocab, bias=False))
        hidden = torch.randn(scored, 64, dtype=dtype, requires_grad=True)
        targets, allowed = torch.zeros(scored, dtype=torch.long), torch.ones(language.vocab, dtype=torch.bool)
        with PeakMemory([*head.parameters(), hidden]) as memory:
            logprobs, _ = head(hidden, targets, Scoring(targets, targets, allowed))
            logprobs.sum().backward()
    assert memory.peak_bytes == pytest.approx(head_bytes(language, scored), rel=0.02)
