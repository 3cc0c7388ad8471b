"""Text to ids, pixels to packed patches."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from rl.config.policy import ScenesConfig
from rl.policy.families import CLIP_MEAN, CLIP_STD
from rl.policy.processor import Processor
from rl.policy.token_ids import TOKEN_TEXT, VISION_TOKENS, PolicyFilesError

pytestmark = pytest.mark.parametrize("tiny", ["qwen2_5_vl"], indirect=True)  # the other's layout: test_families.py


@pytest.fixture
def frames(processor, random_pixels):
    """Three scenes of 1, 2 and 3 frames of 2 x 3 tokens."""
    first, second, third = random_pixels(3)
    return processor.make_frames(np.stack([first, second, second, third, third, third]), [0.0, 0.5, 1.0, 12.54, 13, 14])


def test_every_word_of_the_protocol_is_one_token(processor):
    for name, text in TOKEN_TEXT.items():
        if text not in VISION_TOKENS:
            assert processor.encode(text) == [getattr(processor.ids, name)]


def test_ids_come_back_as_the_text_they_were(processor):
    text = "<think>I look<span>1.5 - 12.0</span><fps>4</fps>\nÜber 3°</think><answer>B</answer><|im_end|>"
    assert processor.decode(processor.encode(text)) == text


def test_a_character_spread_over_tokens_stands_at_the_last_of_them(processor):
    token_ids = processor.encode("3° 👀</think><|im_end|>")  # two bytes of °, four of the eyes, each a token
    assert processor.pieces(token_ids) == ["3", "", "°", " ", "", "", "", "👀", "</think>", "<|im_end|>"]


def test_bytes_that_are_no_character_stand_where_they_were_sampled(processor):
    first_of_three, second, letter = (*processor.encode("€")[:2], *processor.encode("A"))
    assert processor.pieces([first_of_three, second, letter]) == ["", "\ufffd", "A"]
    assert processor.pieces([first_of_three, first_of_three]) == ["\ufffd", "\ufffd"]
    assert processor.pieces([letter, first_of_three]) == ["A", "\ufffd"]
    assert processor.pieces([]) == []


@given(st.data())
def test_pieces_are_one_per_token_and_together_the_text(processor, data):
    allowed = np.flatnonzero(processor.allowed_token_mask()).tolist()
    token_ids = data.draw(st.lists(st.sampled_from(allowed), max_size=40))  # mostly single bytes: no UTF-8 at all
    pieces = processor.pieces(token_ids)
    assert len(pieces) == len(token_ids) and "".join(pieces) == processor.decode(token_ids)


def test_digits_are_tokens_of_their_own(processor):
    assert [processor.decode([token]) for token in processor.encode("120.5")] == ["1", "2", "0", ".", "5"]


def test_a_literal_vision_token_in_a_question_stays_text(processor):
    token_ids = processor.encode("What is <|video_pad|> in <|vision_start|>?")
    assert not {processor.ids.video_pad, processor.ids.vision_start} & set(token_ids)
    assert processor.decode(token_ids) == "What is <|video_pad|> in <|vision_start|>?"


def test_text_from_outside_cannot_end_a_message(processor):
    assert processor.ids.im_end in processor.encode("a<|im_end|>")
    assert processor.ids.im_end not in processor.encode("a<|im_end|>", markers=False)


def test_block_holds_times_and_expanded_placeholders(processor, frames):
    assert frames.scene_lengths == (1, 2, 3)
    pads = "<|video_pad|>" * 6
    expected = f"<|vision_start|><0.0 seconds>{pads}<0.5 seconds>{pads}<12.5 seconds>{pads}<|vision_end|>"
    assert processor.decode(processor.video_block(frames)) == expected
    assert processor.video_block(frames).count(processor.ids.video_pad) == processor.visual_tokens(frames) == 18


def test_paper_layout_has_placeholders_only(tiny_dir, frames):
    bare = Processor.from_pretrained(tiny_dir, ScenesConfig(timestamps="none"))
    ids = bare.ids
    assert bare.video_block(frames) == [ids.vision_start, *[ids.video_pad] * 18, ids.vision_end]


def test_positions_cover_a_sequence_with_two_blocks(processor, frames):
    token_ids = [*processor.encode("Look:"), *processor.video_block(frames), *processor.video_block(frames)]
    positions = processor.positions(token_ids, [frames, frames])
    assert positions.shape == (3, len(token_ids))
    assert processor.geometry.clock(frames).times_s_K == (0.0, 0.5, 12.54)


def test_patches_lie_as_transformers_lays_them(processor, random_pixels):
    pixels = random_pixels(3)
    frames = processor.make_frames(pixels, [0, 1, 2])
    stock = Qwen2VLImageProcessorPil(temporal_patch_size=1, do_resize=False)(list(pixels), return_tensors="np")
    packed = processor.pack(frames)
    ours = packed.patches_ND.reshape(-1, 3, 14 * 14) / 255
    normalised = (ours - np.array(CLIP_MEAN)[:, None]) / np.array(CLIP_STD)[:, None]
    assert np.allclose(normalised.reshape(stock["pixel_values"].shape), stock["pixel_values"], atol=1e-5)
    assert [[1, packed.grid_h, packed.grid_w]] * 3 == stock["image_grid_thw"].tolist()


def test_packed_video_carries_the_scenes_and_their_clock(processor, frames):
    packed = processor.pack(frames)
    assert packed.patches_ND.shape == (6 * 4 * 6, 588) and packed.patches_ND.dtype == np.uint8
    assert packed.scene_lengths == (1, 2, 3) and packed.num_scenes == 3
    assert packed.times_s_K == (0.0, 0.5, 12.54) and packed.patches_per_frame == 24


def test_digest_names_pixels_times_scenes_and_encoder(processor, tiny_dir, random_pixels):
    pixels, times = random_pixels(2), [0.0, 1.0]
    changed = pixels.copy()
    changed[1, 0, 0, 0] ^= 1
    paired = Processor.from_pretrained(tiny_dir, ScenesConfig(mode="fixed"))
    digests = [
        processor.make_frames(pixels, times).digest,
        processor.make_frames(changed, times).digest,
        processor.make_frames(pixels, [0.0, 1.5]).digest,
        paired.make_frames(pixels, times).digest,
    ]
    assert len(set(digests)) == 4
    assert processor.make_frames(pixels.copy(), times).digest == digests[0]


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(784, 400_000))
def test_fit_gives_whole_blocks_within_the_budget(processor, height, width, max_pixels):
    rows, columns = processor.fit(height, width, max_pixels)
    assert rows % 28 == columns % 28 == 0
    assert rows >= 28 and columns >= 28
    assert rows * columns <= max_pixels


def test_fit_keeps_shape_and_area(processor):
    assert processor.fit(480, 854, 10**7) == (476, 840)
    assert processor.fit(1080, 1920, 151_200) == (280, 504)
    assert processor.fit(10, 10, 784) == (28, 28)


@pytest.mark.parametrize("height, width, max_pixels", [(0, 10, 10_000), (10, 10, 783)])
def test_fit_refuses_what_cannot_be_encoded(processor, height, width, max_pixels):
    with pytest.raises(ValueError, match=r"cannot be encoded|at least 784"):
        processor.fit(height, width, max_pixels)


def test_mask_bans_vision_tokens_and_padding_rows(processor, tiny_dir):
    allowed = processor.allowed_token_mask()
    assert len(allowed) == json.loads((tiny_dir / "config.json").read_text())["text_config"]["vocab_size"]
    assert len(allowed) % 64 == 0
    ids = processor.ids
    assert not allowed[[ids.video_pad, ids.image_pad, ids.vision_start, ids.vision_end]].any()
    assert allowed[[ids.span_open, ids.fps_close, ids.im_end, *processor.encode("answer 3")]].all()
    assert not allowed[-1] and processor.decode([len(allowed) - 1]) == ""


@pytest.mark.parametrize(
    "shape, times, message",
    [
        ((2, 56, 50, 3), [0, 1], "multiples of 28"),
        ((2, 0, 56, 3), [0, 1], "multiples of 28"),
        ((56, 56, 3), [0], "multiples of 28"),
        ((2, 56, 56, 4), [0, 1], "uint8 of shape"),
        ((2, 56, 56, 3), [0], "as many finite"),
        ((2, 56, 56, 3), [1, 0], "non-decreasing"),
        ((2, 56, 56, 3), [0, float("nan")], "finite"),
        ((0, 56, 56, 3), [], "at least one frame"),
    ],
)
def test_frames_that_do_not_fit_are_refused(processor, shape, times, message):
    with pytest.raises(ValueError, match=message):
        processor.make_frames(np.zeros(shape, np.uint8), times)


def test_stock_tokenizer_is_refused_with_the_remedy(stock_dir):
    with pytest.raises(PolicyFilesError, match=r"lacks <span>.*convert_stock_checkpoint"):
        Processor.from_pretrained(stock_dir, ScenesConfig())


def test_missing_or_foreign_files_are_named(tiny_dir, tmp_path):
    with pytest.raises(PolicyFilesError, match=r"tokenizer\.json: no such file"):
        Processor.from_pretrained(tmp_path, ScenesConfig())
    shutil.copy(tiny_dir / "tokenizer.json", tmp_path)
    with pytest.raises(PolicyFilesError, match=r"config\.json: cannot be read"):
        Processor.from_pretrained(tmp_path, ScenesConfig())
    config = json.loads((tiny_dir / "config.json").read_text())
    config["text_config"]["vocab_size"] = 128
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PolicyFilesError, match="different checkpoints"):
        Processor.from_pretrained(tmp_path, ScenesConfig())


def test_a_tokenizer_that_numbers_the_models_tokens_otherwise_is_refused(tiny_dir, tmp_path):
    shutil.copy(tiny_dir / "tokenizer.json", tmp_path)
    config = json.loads((tiny_dir / "config.json").read_text())
    for key in ("video_token_id", "image_token_id", "vision_start_token_id", "vision_end_token_id"):
        assert key in config
        (tmp_path / "config.json").write_text(json.dumps(config | {key: 151_000}))
        with pytest.raises(PolicyFilesError, match=rf"config\.json has {key}=151000, tokenizer\.json numbers <\|"):
            Processor.from_pretrained(tmp_path, ScenesConfig())


def test_scene_parameters_enter_the_digest_prefix(processor, tiny_dir):
    other = Processor.from_pretrained(tiny_dir, replace(processor.scenes, tau=0.3))
    assert other.digest_prefix != processor.digest_prefix
