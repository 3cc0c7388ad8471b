"""Our policy in `fixed` mode against stock transformers, on inputs made by transformers' own processing.

    dynframe make-checkpoint qwen3_vl 4b --layers 2 --vision-layers 2 models/random-4b
    python benchmarks/fidelity.py models/random-4b [another stock folder ...]

Parity of engine and learner cannot see what both share: pixel statistics, the bias of the patch embedding, scene times,
layout, positions. So a stock folder is converted (`fixed` scenes: frame pairs, stock's own kernel) and both read one
video: stock in tokens of text written by hand and in pixels of transformers' image processor, ours in its own. Ours
must say the same. A row per folder and dtype; largest absolute differences, and the spread of what is compared.
"pixels" are our normalised values against transformers' (whose two backends differ from each other by as much); tower,
DeepStack and logits are of those of transformers, read by both: they must be equal to the bit.

The two models are loaded one after the other. float32 of a 4B of two layers takes 5 GiB.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tables import print_conditions, print_table
from tokenizers import Tokenizer
from transformers import AutoModelForImageTextToText
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from rl.config.policy import ScenesConfig
from rl.policy.convert import convert_stock_checkpoint
from rl.policy.families import family_of
from rl.policy.model import load_policy
from rl.policy.processor import Processor

FIXED = ScenesConfig(mode="fixed")
STATISTICS = {  # of pixels, and the side of a patch: as the families' hub folders have them, written here by hand
    "qwen2_5_vl": (14, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "qwen3_vl": (16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
NUM_FRAMES, ROWS, COLUMNS = 5, 6, 8  # an odd last frame; visual tokens high and wide
TIMES_S = np.arange(NUM_FRAMES) / 2
QUESTION = ("Look.\n", " Which colour?")  # a blank before a block would merge with the "<" of Qwen3-VL's first time


@dataclass(frozen=True, slots=True)
class StockInput:
    """One video and a question, as stock reads them."""

    values: torch.Tensor  # (patches, values of a frame pair)
    frames: np.ndarray  # (T * patches of a frame, values of a patch): the same, frame after frame
    grid: list[int]  # frame pairs, patch rows, patch columns
    token_ids: list[int]


@dataclass(frozen=True, slots=True)
class Read:
    """What a model made of it."""

    tower: torch.Tensor  # (N, E)
    levels: Sequence[torch.Tensor]  # DeepStack's
    logits: torch.Tensor  # (T, V), of the stock tokens
    positions: torch.Tensor | None  # (3, T); None where the family's stock has no say: times are rounded otherwise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="stock checkpoints")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="(default float32 bfloat16)")
    options = parser.parse_args()
    print_conditions("torch", "transformers")
    rows = [row(folder, dtype) for folder in options.folders for dtype in options.dtypes]
    headings = (
        "folder",
        "dtype",
        "tokens",
        "positions",
        "pixels",
        "tower",
        "DeepStack",
        "logits",
        "spread of tower",
        "spread of logits",
    )
    print_table(headings, rows)


def row(folder: Path, dtype: str) -> tuple[str, ...]:
    """The largest differences of one folder."""
    with tempfile.TemporaryDirectory() as scratch:
        converted = convert_stock_checkpoint(folder, Path(scratch) / "ours", FIXED)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        stock_input, stock = read_stock(folder, converted, dtype, tokenizer)
        ours_ids, pixel_difference, ours = read_ours(converted, dtype, stock_input, tokenizer.get_vocab_size())
    levels = [worst(one, other) for one, other in zip(stock.levels, ours.levels, strict=True)]
    return (
        folder.name,
        dtype,
        "equal" if ours_ids == stock_input.token_ids else "DIFFERENT",
        "-" if stock.positions is None else "equal" if torch.equal(stock.positions, ours.positions) else "DIFFERENT",
        f"{pixel_difference:.1e}",
        f"{worst(stock.tower, ours.tower):.1e}",
        f"{max(levels):.1e} ({len(levels)} levels)" if levels else "-",
        f"{worst(stock.logits, ours.logits):.1e}",
        f"{float(stock.tower.std()):.2f}",
        f"{float(stock.logits.std()):.2f}",
    )


def worst(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest absolute difference."""
    return float((one - other).abs().max())


@torch.no_grad()
def read_stock(folder: Path, converted: Path, dtype: str, tokenizer: Tokenizer) -> tuple[StockInput, Read]:
    """Stock's classes, weights and tokenizer, on input made without our code."""
    model_type = family_of(folder).model_type
    given = stock_input(model_type, tokenizer)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=getattr(torch, dtype))
    grid, ids = torch.tensor([given.grid]), torch.tensor([given.token_ids])
    tower = model.model.visual(given.values, grid_thw=grid)
    is_pad = ids == model.config.video_token_id
    positions = None
    if model_type == "qwen3_vl":
        positions = model.model.get_rope_index(ids, is_pad.int() * 2, video_grid_thw=grid)[0]
    else:  # its own rule rounds a pair's time to a whole tick of a rate; ours are handed to it
        positions = our_positions(converted, given.token_ids)
    logits = model(
        ids,
        position_ids=positions,
        pixel_values_videos=given.values,
        video_grid_thw=grid,
        mm_token_type_ids=is_pad.int() * 2,
    ).logits
    levels = [level.float() for level in getattr(tower, "deepstack_features", None) or ()]
    told = positions[:, 0] if model_type == "qwen3_vl" else None
    known = tokenizer.get_vocab_size()  # spare rows of the embedding become our tags
    read = Read(tower.pooler_output.float(), levels, logits[0, :, :known].float(), told)
    del model
    gc.collect()
    return given, read


@torch.no_grad()
def read_ours(converted: Path, dtype: str, given: StockInput, vocab_size: int) -> tuple[list[int], float, Read]:
    """Our classes, the converted weights, our tokens and positions, and by how much our pixels differ from stock's."""
    model, processor = load_policy(converted, FIXED, dtype), Processor.from_pretrained(converted, FIXED)
    frames = processor.make_frames(pixels(processor.geometry.unit), TIMES_S)
    before, after = map(processor.encode, QUESTION)
    token_ids = [*before, *processor.video_block(frames), *after]
    positions = torch.from_numpy(processor.positions(token_ids, [frames]))
    own = processor.pack(frames)
    normalised = model.model.visual.patch_embed._normalise(torch.from_numpy(own.patches_ND)[:, None])
    pixel_difference = worst(normalised[:, 0].float(), torch.from_numpy(given.frames))
    packed = replace(own, patches_ND=given.frames)
    visual = model.encode_videos([packed])
    logits = model(torch.tensor([token_ids]), position_ids=positions[:, None], videos=[packed]).logits
    levels = [level.float() for level in visual.levels]
    read = Read(visual.embeddings_NE.float(), levels, logits[0, :, :vocab_size].float(), positions)
    del model
    gc.collect()
    return token_ids, pixel_difference, read


def our_positions(converted: Path, token_ids: Sequence[int]) -> torch.Tensor:
    """Positions (3, 1, T) of the tokens, by our rule."""
    processor = Processor.from_pretrained(converted, FIXED)
    frames = processor.make_frames(pixels(processor.geometry.unit), TIMES_S)
    return torch.from_numpy(processor.positions(list(token_ids), [frames]))[:, None]


def pixels(unit: int) -> np.ndarray:
    """Noise, (T, H, W, 3) uint8."""
    shape = (NUM_FRAMES, ROWS * unit, COLUMNS * unit, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def stock_input(model_type: str, tokenizer: Tokenizer) -> StockInput:
    """Frame pairs as transformers' own image processor lays and normalises them, and the block's text by hand."""
    side, mean, std = STATISTICS[model_type]
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=side, temporal_patch_size=1, merge_size=2, do_resize=False, image_mean=mean, image_std=std
    )
    found = image_processor(list(pixels(2 * side)), return_tensors="np")
    frames = np.split(found["pixel_values"], NUM_FRAMES)
    alone = np.concatenate(frames)
    frames.append(frames[-1])  # an odd last frame is repeated
    pairs = [
        np.stack([first.reshape(-1, 3, side * side), second.reshape(-1, 3, side * side)], axis=2)
        for first, second in zip(frames[::2], frames[1::2], strict=True)
    ]
    values = torch.from_numpy(np.concatenate([pair.reshape(len(pair), -1) for pair in pairs]))
    text = block_text(model_type).join(QUESTION)
    return StockInput(
        values, alone, [len(pairs), 2 * ROWS, 2 * COLUMNS], tokenizer.encode(text, add_special_tokens=False).ids
    )


def block_text(model_type: str) -> str:
    """Three frame pairs as the family's checkpoints were trained to read them."""
    pads = "<|video_pad|>" * (ROWS * COLUMNS)
    if model_type == "qwen3_vl":  # the middle of a pair; the last is one frame, repeated
        return "".join(f"<{time} seconds><|vision_start|>{pads}<|vision_end|>" for time in ("0.2", "1.2", "2.0"))
    return "<|vision_start|>" + "".join(f"<{time} seconds>{pads}" for time in ("0.0", "1.0", "2.0")) + "<|vision_end|>"


if __name__ == "__main__":
    main()
