"""The largest video that vLLM measures memory with at the start of an engine on a GPU; on CPU it is skipped."""

from types import SimpleNamespace

import pytest
import torch

from rl.policy.families import FAMILIES

pytestmark = pytest.mark.vllm


def first_runner(config, model):
    """Items and embeddings as vLLM's first model runner makes them when it measures."""
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.encoder_budget import MultiModalBudget
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    budget = MultiModalBudget(config, MULTIMODAL_REGISTRY)
    runner = SimpleNamespace(mm_budget=budget, device=torch.device("cpu"))
    modality = budget.get_modality_with_max_tokens()
    items = budget.mm_max_items_per_batch[modality]
    return budget, items, model.embed_multimodal(**GPUModelRunner._get_mm_dummy_batch(runner, modality, items))


def second_runner(config, model):
    """As its second one does, the default on a GPU."""
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.encoder_budget import MultiModalBudget
    from vllm.v1.worker.gpu.mm.encoder_runner import EncoderRunner

    budget = MultiModalBudget(config, MULTIMODAL_REGISTRY, enable_cache=False)
    cache = SimpleNamespace(encoder_outputs={})
    runner = SimpleNamespace(model=model, device=torch.device("cpu"), cudagraph_manager=None, encoder_cache=cache)
    runner.execute_mm_encoder = lambda items: EncoderRunner.execute_mm_encoder(runner, items)
    inputs = budget.get_dummy_encoder_profile_inputs()
    EncoderRunner.profile_encoder_cache(runner, inputs, budget)
    return budget, len(inputs), tuple(cache.encoder_outputs.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("runner", [first_runner, second_runner])
def test_the_largest_video_is_encoded_by_both_model_runners(runner, family, build_policy, load_model):
    from vllm.v1.worker.utils import sanity_check_mm_encoder_outputs

    loaded = load_model(build_policy(family, True))
    budget, items, embedded = runner(loaded.config, loaded.model)
    sanity_check_mm_encoder_outputs(embedded, expected_num_items=items)
    assert items >= 1
    context = loaded.config.model_config.max_model_len
    assert {len(tokens) for tokens in embedded} == {budget.mm_max_toks_per_item["video"]}
    assert 0.9 * context < len(embedded[0]) <= context <= budget.get_encoder_budget()  # no video is too large for it


@pytest.mark.parametrize("family", FAMILIES)
def test_frames_are_embedded_a_part_at_a_time_and_towers_are_told_of_scenes_or_of_videos_alike(
    family, build_policy, load_model, monkeypatch
):
    """A still clip of many frames has few tokens: vLLM's budget does not bound its frames."""
    model = load_model(build_policy(family, True)).model
    values = 3 * model.config.vision_config.patch_size**2
    lengths = [1, 2, 5, 1, 3]
    fields = {
        "patches": torch.randint(0, 256, (16 * sum(lengths), values), dtype=torch.uint8),
        "scene_lengths": torch.tensor(lengths),
        "shapes": torch.tensor([[16 * 8, 3, 4, 4], [16 * 4, 2, 4, 4]]),
    }
    whole = model.embed_multimodal(**fields)
    monkeypatch.setattr(model.scene_engine, "_one_grid_per_scene", not model.one_grid_per_scene)
    assert all(map(torch.equal, whole, model.embed_multimodal(**fields)))
    rows = []
    embed = model.visual.patch_embed.forward
    monkeypatch.setattr(
        model.visual.patch_embed, "forward", lambda patches, *rest: rows.append(len(patches)) or embed(patches, *rest)
    )
    monkeypatch.setattr("rl.policy.vllm.scene_engine.PATCHES_AT_ONCE", 64)
    parts = model.embed_multimodal(**fields)
    assert rows[:-1] == [48, 80, 64]  # a scene is never cut; the last is the tower's own call
    assert [len(tokens) for tokens in whole] == [len(tokens) for tokens in parts] == [12, 8]
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
