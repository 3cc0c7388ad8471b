"""The learner's side of the policy, against stock transformers where there is a stock to compare with."""

import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from rl.config.policy import ScenesConfig
from rl.policy.convert import convert_stock_checkpoint, prepare_policy
from rl.policy.model import freeze_vision, load_policy, recompute_activations, save_policy
from rl.policy.processor import Processor
from rl.policy.scoring_head import token_logprobs
from rl.policy.token_ids import PolicyFilesError

SCENES = ScenesConfig()


@pytest.fixture(scope="module")
def model(tiny_dir):
    return load_policy(tiny_dir, SCENES)


@pytest.fixture
def sequences(processor, random_pixels):
    """Two rows of a batch: two videos and text, one video and text; with the videos in order."""
    videos = [processor.make_frames(random_pixels(n, seed=n), np.arange(n) / 2) for n in (5, 2, 3)]
    first = [*processor.video_block(videos[0]), *processor.encode("Which?<span>1 - 2</span><fps>2</fps>")]
    first += [*processor.video_block(videos[1]), *processor.encode("red</think><answer>A</answer><|im_end|>")]
    second = [*processor.encode("Look"), *processor.video_block(videos[2]), *processor.encode("blue")]
    return [(first, videos[:2]), (second, videos[2:])]


def batch(processor, sequences):
    """Right-padded tensors of the rows, and their packed videos."""
    longest = max(len(token_ids) for token_ids, _ in sequences)
    input_ids = torch.full((len(sequences), longest), processor.ids.pad)
    mask = torch.zeros(len(sequences), longest, dtype=torch.long)
    positions = torch.zeros(3, len(sequences), longest, dtype=torch.long)
    for row, (token_ids, videos) in enumerate(sequences):
        input_ids[row, : len(token_ids)] = torch.tensor(token_ids)
        mask[row, : len(token_ids)] = 1
        positions[:, row, : len(token_ids)] = torch.from_numpy(processor.positions(token_ids, videos))
    return input_ids, mask, positions, [processor.pack(video) for _, videos in sequences for video in videos]


def score(model, processor, sequences, **options):
    allowed = torch.from_numpy(processor.allowed_token_mask())
    return token_logprobs(model, *batch(processor, sequences), allowed_V=allowed, **options)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_fixed_mode_with_stock_weights_is_stock_transformers_bit_for_bit(stock_dir, tmp_path, random_pixels):
    scenes = ScenesConfig(mode="fixed")
    folder = convert_stock_checkpoint(stock_dir, tmp_path / "ours", scenes)
    ours, processor = load_policy(folder, scenes), Processor.from_pretrained(folder, scenes)
    stock = AutoModelForImageTextToText.from_pretrained(stock_dir, dtype=torch.float32)
    packed = processor.pack(processor.make_frames(random_pixels(5, 5, 6), np.arange(5)))
    last_frame = packed.patches_ND[-packed.patches_per_frame :]
    patches = torch.from_numpy(np.concatenate([packed.patches_ND, last_frame]))  # stock repeats an odd last frame
    normalised = ours.model.visual.patch_embed._normalise(patches[None])[0]
    per_channel = processor.geometry.patch**2
    pairs = normalised.view(3, 2, -1, 3, per_channel).permute(0, 2, 3, 1, 4).reshape(3 * packed.patches_per_frame, -1)

    with torch.no_grad():
        expected = stock.model.visual(pairs, grid_thw=torch.tensor([[3, packed.grid_h, packed.grid_w]]))
        visual = ours.encode_videos([packed])
    assert torch.equal(visual.embeddings_NE, expected.pooler_output)
    stock_levels = getattr(expected, "deepstack_features", None) or ()
    assert len(visual.levels) == len(stock_levels) and all(map(torch.equal, visual.levels, stock_levels))


def test_text_is_what_stock_transformers_makes_of_it(stock_dir, tmp_path):
    folder = convert_stock_checkpoint(stock_dir, tmp_path / "ours", SCENES)
    ours, processor = load_policy(folder, SCENES), Processor.from_pretrained(folder, SCENES)
    stock = AutoModelForImageTextToText.from_pretrained(stock_dir, dtype=torch.float32)
    token_ids = processor.encode("Which colour is shown?")
    positions = torch.from_numpy(processor.positions(token_ids, []))[:, None]
    with torch.no_grad():
        ours_logits = ours(torch.tensor([token_ids]), position_ids=positions).logits
        stock_logits = stock(torch.tensor([token_ids])).logits
    known = processor.ids.span_open  # the tags come after everything the stock tokenizer has
    assert torch.equal(ours_logits[..., :known], stock_logits[..., :known])


def test_a_batch_gives_each_row_what_it_gets_alone(model, processor, sequences):
    together, _ = score(model, processor, sequences)
    for row, sequence in enumerate(sequences):
        alone, _ = score(model, processor, [sequence])
        torch.testing.assert_close(together[row, : len(sequence[0])], alone[0], atol=2e-5, rtol=1e-5)
        assert not together[row, len(sequence[0]) :].any()


def test_logprobs_are_those_of_the_masked_tempered_softmax(model, processor, sequences):
    temperature = 0.7
    logprobs, entropies = score(model, processor, sequences, temperature=temperature)
    input_ids, mask, positions, videos = batch(processor, sequences)
    logits = model(input_ids, mask, positions, videos).logits.double() / temperature
    logits[..., ~torch.from_numpy(processor.allowed_token_mask())] = -torch.inf
    for row, (token_ids, _) in enumerate(sequences):
        for i in range(1, len(token_ids)):
            distribution = logits[row, i - 1].log_softmax(-1)
            if torch.isfinite(distribution[token_ids[i]]):
                assert logprobs[row, i].item() == pytest.approx(distribution[token_ids[i]].item(), abs=1e-4)
                assert entropies[row, i].item() == pytest.approx(
                    -(distribution.exp() * distribution).nansum().item(), abs=1e-4
                )
            else:
                assert logprobs[row, i] == 0


def test_chunks_change_neither_values_nor_gradients(model, processor, sequences):
    whole, _ = score(model, processor, sequences, chunk_tokens=10_000)
    chunked, _ = score(model, processor, sequences, chunk_tokens=7)
    torch.testing.assert_close(whole, chunked, atol=1e-6, rtol=1e-6)
    expected, found = gradients(model, whole.sum()), gradients(model, chunked.sum())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-3, msg=name)


def test_only_scored_tokens_are_scored(model, processor, sequences):
    everything, _ = score(model, processor, sequences)
    scored = torch.zeros(everything.shape, dtype=torch.bool)
    scored[0, -5:] = True
    some, entropies = score(model, processor, sequences, scored_BT=scored)
    torch.testing.assert_close(some, torch.where(scored, everything, 0.0), atol=1e-5, rtol=1e-5)
    assert (entropies[scored] > 0).all() and not entropies[~scored].any() and not entropies.requires_grad


def test_scoring_a_banned_token_is_refused(model, processor, sequences):
    scored = torch.ones(2, max(len(ids) for ids, _ in sequences), dtype=torch.bool)
    with pytest.raises(ValueError, match="may not sample"):
        score(model, processor, sequences, scored_BT=scored)


def test_pixels_times_and_scene_order_matter(model, processor, sequences, random_pixels):
    (token_ids, videos), _ = sequences
    before, _ = score(model, processor, [(token_ids, videos)])
    pixels = np.asarray(videos[0].pixels_THWC)
    for changed in (np.roll(pixels, 1, axis=2), pixels[::-1]):
        other = replace(videos[0], pixels_THWC=np.ascontiguousarray(changed))
        after, _ = score(model, processor, [(token_ids, [other, videos[1]])])
        assert (after - before).abs().max() > 1e-3
    later = replace(videos[0], timestamps_s_T=tuple(20 * time for time in videos[0].timestamps_s_T))
    rest = token_ids[len(processor.video_block(videos[0])) :]
    after, _ = score(model, processor, [([*processor.video_block(later), *rest], [later, videos[1]])])
    assert (after[0, -len(rest) :] - before[0, -len(rest) :]).abs().max() > 1e-3


def test_one_visual_call_per_forward_with_or_without_video(model, processor, sequences):
    calls = []
    hook = model.model.visual.register_forward_hook(lambda *_: calls.append(1))
    text = (processor.encode("no video here"), [])
    score(model, processor, sequences)
    logprobs, _ = score(model, processor, [text])
    hook.remove()
    assert len(calls) == 2

    found = gradients(model, logprobs.sum())
    assert set(found) == {name for name, _ in model.named_parameters()}, "every rank reduces the same gradients"
    assert not found["model.visual.patch_embed.weight"].any()


def test_nothing_to_learn_from_still_reaches_every_parameter(model, processor, sequences):
    nothing = torch.zeros(2, max(len(ids) for ids, _ in sequences), dtype=torch.bool)
    logprobs, entropies = score(model, processor, sequences, scored_BT=nothing)
    assert not logprobs.any() and not entropies.any()
    found = gradients(model, logprobs.sum())
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert not any(gradient.any() for gradient in found.values())


@pytest.mark.parametrize(("language", "vision"), [(True, False), (False, True), (True, True)])
def test_what_is_recomputed_has_the_bits_of_what_is_kept(tiny_dir, processor, sequences, language, vision):
    plain, recomputed = (load_policy(tiny_dir, SCENES).train() for _ in range(2))
    recompute_activations(recomputed, language=language, vision=vision)
    passes = Counter()
    for part, layers in parts(recomputed).items():
        layers[0].register_forward_pre_hook(lambda *_, part=part: passes.update([part]))

    expected, found = (gradients(model, score(model, processor, sequences)[0].sum()) for model in (plain, recomputed))

    assert passes == {"language": 1 + language, "vision": 1 + vision}
    assert expected.keys() == found.keys()
    assert [name for name, gradient in expected.items() if not torch.equal(found[name], gradient)] == []


def parts(model):
    return {"language": model.model.language_model.layers, "vision": model.model.visual.blocks}


def test_nothing_goes_back_through_a_frozen_tower_whatever_is_recomputed(tiny_dir, processor, sequences):
    model = load_policy(tiny_dir, SCENES).train()
    freeze_vision(model)
    recompute_activations(model, language=True, vision=False)
    features = []
    model.model.visual.blocks[-1].register_forward_hook(lambda _, __, output: features.append(output))
    gradients(model, score(model, processor, sequences)[0].sum())
    assert len(features) == 1 and not features[0].requires_grad


def test_frozen_vision_leaves_the_merger_learning(tiny_dir, processor, sequences):
    model = load_policy(tiny_dir, SCENES)
    freeze_vision(model)
    found = gradients(model, score(model, processor, sequences)[0].sum())
    visual = {name.split(".")[2] for name in found if name.startswith("model.visual.")}
    assert visual == {"merger"} | ({"deepstack_merger_list"} if hasattr(model.model.visual, "pos_embed") else set())


def test_bfloat16_scores_are_near_float32(tiny_dir, model, processor, sequences):
    exact, _ = score(model, processor, sequences)
    rounded, entropies = score(load_policy(tiny_dir, SCENES, "bfloat16"), processor, sequences)
    assert rounded.dtype == entropies.dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.2


def test_saved_policy_loads_as_it_was(model, processor, family, tmp_path):
    save_policy(model, processor, tmp_path)
    again = load_policy(tmp_path, SCENES)
    assert again.config.architectures == [family.architecture]
    assert Processor.from_pretrained(tmp_path, SCENES).ids == processor.ids
    assert all(torch.equal(mine, its) for mine, its in zip(model.parameters(), again.parameters(), strict=True))
    files = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert files | {"chat_template.jinja"} <= {path.name for path in tmp_path.iterdir()}


def test_a_folder_of_version_0_3_0_says_the_stock_model_type_and_is_saved_under_ours(tiny_dir, family, tmp_path):
    old, saved = tmp_path / "old", tmp_path / "saved"
    shutil.copytree(tiny_dir, old)
    config = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps(config | {"model_type": family.model_type}))
    assert prepare_policy(old, SCENES, tmp_path / "cache") == old
    save_policy(load_policy(old, SCENES), Processor.from_pretrained(old, SCENES), saved)
    assert json.loads((saved / "config.json").read_text())["model_type"] == family.own_model_type
    assert (saved / "model.safetensors").read_bytes() == (old / "model.safetensors").read_bytes()


def test_other_scene_parameters_are_refused_by_name(tiny_dir, stock_dir):
    with pytest.raises(PolicyFilesError, match=r"tau=0.2 \(asked 0.3\)"):
        load_policy(tiny_dir, replace(SCENES, tau=0.3))
    with pytest.raises(PolicyFilesError, match="convert_stock_checkpoint"):
        load_policy(stock_dir, SCENES)


def test_cached_generation_gives_the_tokens_of_one_pass_per_token(model, processor, sequences):
    (token_ids, videos), _ = sequences
    input_ids, _, positions, packed = batch(processor, sequences[:1])
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    generated = model.generate(input_ids, position_ids=positions, videos=packed, **options)[0].tolist()
    for _ in range(8):
        with torch.no_grad():
            logits = model(*batch(processor, [(token_ids, videos)])).logits
        token_ids = [*token_ids, int(logits[0, -1].argmax())]
    assert generated == token_ids


def test_placeholders_and_videos_must_agree(model, processor, sequences):
    input_ids, mask, positions, videos = batch(processor, sequences)
    with pytest.raises(ValueError, match="video placeholders, but 2 videos"):
        model(input_ids, mask, positions, videos[:2])
    with pytest.raises(ValueError, match="position_ids"):
        model(input_ids, mask, None, videos)
