"""What distinguishes the families, against stock transformers: layout, scene times, positions, pixels, refusals."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from rl.config.policy import ScenesConfig, TinyPolicyConfig
from rl.policy.convert import convert_stock_checkpoint
from rl.policy.families import FAMILIES, family_of
from rl.policy.geometry import Geometry
from rl.policy.layout import counts_in, find_blocks, find_marked
from rl.policy.model import load_policy
from rl.policy.processor import Processor
from rl.policy.token_ids import PolicyFilesError

FIXED = ScenesConfig(mode="fixed")


@pytest.fixture
def frames(processor, random_pixels):
    """Three scenes of 1, 2 and 3 frames of 2 x 3 tokens."""
    first, second, third = random_pixels(3)
    return processor.make_frames(np.stack([first, second, second, third, third, third]), [0.0, 0.5, 1.0, 12.54, 13, 14])


WRITTEN = {
    "qwen2_5_vl": "<|vision_start|><0.0 seconds>{pads}<0.5 seconds>{pads}<12.5 seconds>{pads}<|vision_end|>",
    "qwen3_vl": "".join(
        f"<{time} seconds><|vision_start|>{{pads}}<|vision_end|>"
        for time in ("0.0", "0.8", "13.3")  # middles: 0, (0.5 + 1.0) / 2, (12.54 + 14) / 2
    ),
}


def test_a_block_is_laid_out_as_its_family_does(processor, family, frames):
    expected = WRITTEN[family.model_type].format(pads="<|video_pad|>" * 6)
    assert processor.decode(processor.video_block(frames)) == expected


def test_blocks_are_found_where_they_were_written(processor, frames):
    block, ids = processor.video_block(frames), processor.ids
    sequence = [*processor.encode("Look: "), *block, *processor.encode(" and "), *block]
    first = len(processor.encode("Look: "))
    second = first + len(block) + len(processor.encode(" and "))
    assert find_blocks(sequence, [block, block], ids.video_pad) == [
        (first, first + len(block)),
        (second, second + len(block)),
    ]
    counts = counts_in(block, ids)
    spans = find_marked(sequence, [counts, counts], ids.vision_start, ids.video_pad)
    assert [int(is_pad.sum()) for *_, is_pad in spans] == [18, 18]
    assert all(sequence[start] == ids.vision_start and sequence[stop - 1] == ids.video_pad for start, stop, _ in spans)
    with pytest.raises(ValueError, match="placeholders already expanded"):
        find_marked(sequence, [counts], ids.vision_start, ids.video_pad)


@pytest.mark.parametrize("tiny", ["qwen3_vl"], indirect=True)
def test_positions_of_qwen3_vl_are_those_of_transformers(processor, stock_dir, random_pixels):
    processor = Processor(processor._tokenizer, processor.geometry, FIXED, processor.folder)
    videos = [
        processor.make_frames(random_pixels(frames, rows, columns, seed=rows), 3 * rows + np.arange(frames) / 2)
        for frames, rows, columns in ((5, 3, 4), (4, 2, 3), (1, 1, 1))
    ]
    token_ids = [*processor.encode("Look. "), *processor.video_block(videos[0]), *processor.encode(" Which?")]
    token_ids += [*processor.video_block(videos[1]), *processor.video_block(videos[2]), *processor.encode("red it is")]
    ids = torch.tensor([token_ids])
    clocks = [processor.geometry.clock(video) for video in videos]
    grids = torch.tensor([(len(clock.times_s_K), clock.grid_h, clock.grid_w) for clock in clocks])
    stock = AutoModelForImageTextToText.from_pretrained(stock_dir).model
    kinds = (ids == processor.ids.video_pad).int() * 2
    expected, _ = stock.get_rope_index(ids, kinds, video_grid_thw=grids)
    assert np.array_equal(processor.positions(token_ids, videos), expected[:, 0].numpy())


@pytest.mark.parametrize("tiny", ["qwen3_vl"], indirect=True)
def test_a_scene_outside_its_markers_is_refused(processor, frames):
    token_ids = processor.video_block(frames)
    token_ids.remove(processor.ids.vision_end)
    with pytest.raises(ValueError, match="does not stand between"):
        processor.positions(token_ids, [frames])


def stock_pairs(frames, family):
    """Frame pairs and single frames as transformers' own image processor lays and normalises them, and the grid: none
    of our code."""
    side = {"qwen2_5_vl": 14, "qwen3_vl": 16}[family.model_type]
    statistics = {
        "qwen2_5_vl": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        "qwen3_vl": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    }
    mean, std = statistics[family.model_type]
    stock = Qwen2VLImageProcessorPil(
        patch_size=side, temporal_patch_size=1, merge_size=2, do_resize=False, image_mean=mean, image_std=std
    )
    found = stock(list(frames), return_tensors="np")
    per_frame = np.split(found["pixel_values"], len(frames))
    alone = np.concatenate(per_frame)
    if len(per_frame) % 2:
        per_frame.append(per_frame[-1])
    pairs = [
        np.stack([first.reshape(-1, 3, side * side), second.reshape(-1, 3, side * side)], axis=2)
        for first, second in zip(per_frame[::2], per_frame[1::2], strict=True)
    ]
    _, grid_h, grid_w = found["image_grid_thw"][0].tolist()
    values = np.concatenate([pair.reshape(len(pair), -1) for pair in pairs])
    return torch.from_numpy(values), alone, [len(pairs), grid_h, grid_w]


def test_stock_weights_in_fixed_mode_are_stock_bit_for_bit(stock_dir, tmp_path, family, random_pixels):
    """On inputs made by transformers' own processing: statistics, bias, times, layout and positions are checked.

    Its two backends normalise a pixel with different rounding, and ours with a third: the rest must not differ at all.
    """
    folder = convert_stock_checkpoint(stock_dir, tmp_path / "ours", FIXED)
    ours, processor = load_policy(folder, FIXED), Processor.from_pretrained(folder, FIXED)
    stock = AutoModelForImageTextToText.from_pretrained(stock_dir, dtype=torch.float32)
    stock.resize_token_embeddings(ours.config.text_config.vocab_size, mean_resizing=False)
    stock.get_input_embeddings().weight.data.copy_(ours.get_input_embeddings().weight)
    stock.lm_head.weight.data.copy_(ours.lm_head.weight)
    pixels, times = random_pixels(5, 3, 4), np.arange(5) / 2
    values, normalised, grid = stock_pairs(pixels, family)
    frames = processor.make_frames(pixels, times)
    packed = replace(processor.pack(frames), patches_ND=normalised)
    with torch.no_grad():
        tower = stock.model.visual(values, grid_thw=torch.tensor([grid]))
        visual = ours.encode_videos([packed])
        own_pixels = ours.encode_videos([processor.pack(frames)])
    assert torch.equal(visual.embeddings_NE, tower.pooler_output)
    assert all(map(torch.equal, visual.levels, getattr(tower, "deepstack_features", None) or ()))
    assert (own_pixels.embeddings_NE - tower.pooler_output).abs().max() <= 5e-6
    assert float(visual.embeddings_NE.std()) > 0.05

    block = stock_block(family, times, grid, processor)
    assert processor.video_block(frames) == block
    token_ids = [*processor.encode("Look. "), *block, *processor.encode(" Which colour?")]
    ids = torch.tensor([token_ids])
    kinds = (ids == processor.ids.video_pad).int() * 2
    positions = torch.from_numpy(processor.positions(token_ids, [frames]))[:, None]
    with torch.no_grad():
        found = ours(ids, position_ids=positions, videos=[packed]).logits
        given = {"pixel_values_videos": values, "video_grid_thw": torch.tensor([grid]), "mm_token_type_ids": kinds}
        expected = stock(ids, position_ids=None if family.model_type == "qwen3_vl" else positions, **given).logits
    assert torch.equal(found, expected)
    assert float(expected.std()) > 0.01


def stock_block(family, times, grid, processor):
    """Tokens of a video as the family's checkpoints were trained to read them, times written by hand."""
    pads = "<|video_pad|>" * (grid[1] * grid[2] // 4)
    ends = [(0.0, 0.5), (1.0, 1.5), (2.0, 2.0)]
    if family.model_type == "qwen3_vl":
        texts = [f"<{(first + last) / 2:.1f} seconds><|vision_start|>{pads}<|vision_end|>" for first, last in ends]
        text = "".join(texts)
    else:
        text = "<|vision_start|>" + "".join(f"<{first:.1f} seconds>{pads}" for first, _ in ends) + "<|vision_end|>"
    return processor._tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("tiny", ["qwen3_vl"], indirect=True)
def test_a_bias_belongs_to_the_scene_whatever_its_length(tiny_dir, processor, random_pixels):
    model = load_policy(tiny_dir, ScenesConfig())
    assert model.model.visual.patch_embed.bias.abs().max() > 0.01
    one = random_pixels(1)
    with torch.no_grad():
        alone = model.encode_videos([processor.pack(processor.make_frames(one, [0.0]))])
        for length in (2, 3, 6, 17):
            still = processor.make_frames(np.repeat(one, length, 0), np.arange(length) / 2)
            assert still.scene_lengths == (length,)
            again = model.encode_videos([processor.pack(still)])
            for first, second in zip(
                (alone.embeddings_NE, *alone.levels), (again.embeddings_NE, *again.levels), strict=True
            ):
                torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tiny", ["qwen3_vl"], indirect=True)
def test_a_layout_without_times_leaves_no_clock_and_is_refused(processor):
    bare = ScenesConfig(timestamps="none")
    with pytest.raises(PolicyFilesError, match=r"timestamps=none leaves qwen3_vl without a clock"):
        Processor(processor._tokenizer, processor.geometry, bare, processor.folder)


CHANGED = {
    "mixture of experts": (
        {"model_type": "qwen3_vl_moe"},
        r"model_type 'qwen3_vl_moe' cannot be trained here \(its exp",
    ),
    "another architecture": (
        {"model_type": "llava"},
        r"model_type 'llava' cannot be trained here; what can is 'qwen2_5_vl'",
    ),
    "ours, without its section": (
        {"model_type": "flexivideo_qwen3_vl", "vision_config": {}},
        r"model_type 'flexivideo_qwen3_vl' without vision_config\.flexivideo",
    ),
    "no architecture": ({"model_type": None}, r"model_type \(none\)"),
    "a list": ({"model_type": ["qwen3_vl"]}, r"model_type \['qwen3_vl'\] cannot"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_other_families_are_refused_by_name(case, tiny_dir, tmp_path):
    changes, message = CHANGED[case]
    config = json.loads((tiny_dir / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PolicyFilesError, match=message):
        family_of(tmp_path)


@pytest.mark.parametrize(
    "tiny, section, key",
    [("qwen2_5_vl", "vision_config", "tokens_per_second"), ("qwen3_vl", "text_config", "mrope_interleaved")],
    indirect=["tiny"],
)
def test_a_clock_that_is_not_told_is_refused_rather_than_guessed(tiny_dir, tmp_path, section, key):
    config = json.loads((tiny_dir / "config.json").read_text())
    place = config[section] if section == "vision_config" else config[section]["rope_parameters"]
    del place[key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PolicyFilesError, match=key):
        Geometry.read(tmp_path)


def test_the_configuration_knows_the_same_families():
    for name in FAMILIES:
        assert TinyPolicyConfig(family=name).family == name
        assert AutoConfig.for_model(name).model_type == name
    with pytest.raises(ValueError, match=r"policy\.tiny\.family"):
        TinyPolicyConfig(family="llava")
