"""What the plan says of activations is what autograd saves, counted on fake tensors at real widths."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLDecoderLayer
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextDecoderLayer

from rl.config.learner import RECOMPUTED
from rl.config.policy import PolicyConfig, ScenesConfig, TinyPolicyConfig
from rl.encode_stats.peak_memory import PeakMemory
from rl.memory_plan.activations import (
    FLOAT,
    MicroBatch,
    activations,
    block_backward,
    block_saved,
    head_bytes,
    layer_saved,
    layer_working,
)
from rl.policy.model import load_policy, policy_class, recompute_activations
from rl.policy.packing import Tree
from rl.policy.processor import Processor
from rl.policy.scoring_head import Scoring, ScoringHead
from rl.policy.sizes import BY_NAME
from rl.policy.stock.hub_files import model_config
from rl.policy.structure import read_structure, structure_of
from rl.policy.tiny import build_tiny_policy
from rl.policy.window_attention import Windows
from rl.trajectory import Frames

TOKENS = 65_536  # so many that the layer's own weights do not matter
LAYERS = {"qwen2_5_vl": Qwen2_5_VLDecoderLayer, "qwen3_vl": Qwen3VLTextDecoderLayer}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def in_dtype(dtype, make):
    torch.set_default_dtype(dtype)
    try:
        return make()
    finally:
        torch.set_default_dtype(torch.float32)


def taken(layer, hidden, rotary, **options):
    """Bytes per token: what autograd saves of a layer, and what its backward pass takes at most, with its input."""
    known = {tensor.untyped_storage()._cdata for tensor in (*layer.parameters(), *rotary)}
    saved = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with PeakMemory([*layer.parameters(), hidden, *rotary]) as memory:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = layer(hidden, position_embeddings=rotary, **options)
        memory.peak_bytes = 0
        output.sum().backward()
    return sum(saved.values()) / TOKENS, (memory.peak_bytes + hidden.nbytes) / TOKENS


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
        saved, peak = taken(layer, hidden, rotary, attention_mask=None)

    planned = layer_saved(language, dtype.itemsize)
    assert saved == pytest.approx(planned, rel=0.01)
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


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("name", [("qwen2_5_vl", "3b"), ("qwen3_vl", "4b")])
def test_a_block_of_the_tower_saves_and_takes_what_is_planned(name, dtype):
    size = BY_NAME[name].cut(1, 8)
    found = model_config(size)
    tower = read_structure(found, "config.json", init_frames=6).tower
    vision = AutoConfig.for_model(name[0], vision_config=dict(found["vision_config"])).vision_config
    vision._attn_implementation = "sdpa"
    scenes = Windows.of([TOKENS // 8] * 8, torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        visual = in_dtype(dtype, lambda: policy_class(size.family).tower_class(vision, ScenesConfig(mode="fixed")))
        block = visual.train().blocks[-1]
        hidden = torch.randn(TOKENS, tower.hidden, dtype=dtype, requires_grad=True)
        rotary = (torch.randn(TOKENS, tower.hidden // vision.num_heads),) * 2
        saved, peak = taken(block, hidden, rotary, cu_seqlens=scenes)

    planned = block_saved(tower, dtype.itemsize)
    assert saved == pytest.approx(planned, rel=0.01)
    assert peak == pytest.approx(planned + block_backward(tower, dtype.itemsize), rel=0.04)


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def shown(request, tmp_path_factory):
    """A policy that is small enough to be computed, and a sequence that is mostly video."""
    scenes = ScenesConfig(budget="none")
    tiny = TinyPolicyConfig(
        family=request.param, hidden_size=128, num_layers=4, num_heads=4, num_kv_heads=2, vocab_size=600,
        vision_layers=4, vision_hidden_size=64, max_position_embeddings=4096,
    )  # fmt: skip
    folder = build_tiny_policy(tiny, scenes, tmp_path_factory.mktemp("policy"), seed=1)
    processor, frames = Processor.from_pretrained(folder, scenes), 16
    height, width = 6 * processor.geometry.unit, 8 * processor.geometry.unit
    pixels = np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    block = Frames(pixels, tuple(map(float, range(frames))), (1,) * frames, height, width, "block")
    ids = [*processor.video_block(block), *[5] * 300]
    batch = MicroBatch(len(ids), ids.count(processor.ids.video_pad), pixels.size, scored=64)
    return folder, processor, block, ids, batch


@pytest.mark.parametrize("parts", RECOMPUTED)
def test_the_whole_backward_pass_takes_what_is_planned_whatever_is_recomputed(shown, parts):
    folder, processor, block, ids, batch = shown
    model = load_policy(folder, ScenesConfig(budget="none")).train()
    recomputes = {"language": parts in ("language", "all"), "vision": parts in ("vision", "all")}
    recompute_activations(model, **recomputes)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    targets = torch.arange(len(ids) - batch.scored, len(ids))
    structure = structure_of(folder, PolicyConfig(scenes=ScenesConfig(budget="none")))
    scoring = Scoring(targets - 1, targets, torch.ones(structure.language.vocab, dtype=torch.bool))
    positions = torch.from_numpy(processor.positions(ids, [block]))[:, None]
    held = [*model.parameters(), *model.buffers(), *(parameter.grad for parameter in model.parameters())]
    with PeakMemory(held) as memory:
        packing = (Tree(0, (len(ids),)),)
        logprobs, _ = model(
            torch.tensor([ids]), None, positions, [processor.pack(block)], packing=packing, scoring=scoring
        )
        logprobs.sum().backward()

    kept = activations(
        structure,
        batch,
        FLOAT,
        recomputes_language=recomputes["language"],
        recomputes_vision=recomputes["vision"],
        freeze_vision=False,
    )
    planned = max(kept.tower + kept.kept + max(kept.layer, kept.logits), kept.tower_backward)
    assert planned == pytest.approx(memory.peak_bytes, rel=0.08)
