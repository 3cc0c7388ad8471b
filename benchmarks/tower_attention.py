"""The vision towers: attention to all windows in a few calls, against stock's loop; and what a kept block saves.

    python benchmarks/tower_attention.py                                   widths of the 3B and the 4B, four blocks
    python benchmarks/tower_attention.py qwen2_5_vl/3b --layers 8 --scenes 32

At both frame sizes of the shipped configurations. Both have the same random weights and see the same embedded patches;
a pass of one, a pass of the other, and again. Seconds are of processor time. `with gradients` is a pass forward and
backward. The results are compared, too. The second table is of a frozen tower: a whole pass, and what is left of it
where the features before the mergers are kept: the key, which reads the pixels, and the mergers.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from learner_counts import SdpaCalls
from learner_work import COARSE, LOOK, VOCABULARY, Block, size_of
from tables import median_and_range, print_conditions, print_table
from torch import nn
from transformers import AutoConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from rl.config.policy import ScenesConfig
from rl.learner.frozen_trunk import content_key
from rl.policy.geometry import PackedVideo
from rl.policy.model import policy_class
from rl.policy.sizes import PublishedSize
from rl.policy.stock.hub_files import model_config
from rl.policy.tiny_tokenizer import train_tokenizer
from rl.policy.vision_tower import Grid, SceneTower

STOCK = {"qwen2_5_vl": Qwen2_5_VisionTransformerPretrainedModel, "qwen3_vl": Qwen3VLVisionModel}
MERGED = 2  # patches along a side of a visual token


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policies", nargs="*", default=["qwen2_5_vl/3b", "qwen3_vl/4b"], help="FAMILY/SIZE")
    parser.add_argument("--layers", type=int, default=4, help="blocks of the tower (default 4)")
    parser.add_argument("--scenes", type=int, default=8, help="of the block (default 8; a published run has 32)")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print_conditions("torch", "transformers", repeats=options.repeats)
    rows, parts = [], []
    for name in options.policies:
        size = size_of(name)
        ours, stock = towers(size.cut(vision_layers=min(options.layers, size.vision.depth)))
        for block in (COARSE, LOOK):
            rows += compare(name, ours, stock, block, options.scenes, options.repeats)
            parts.append(kept_against_whole(name, ours, block, options.scenes, options.repeats))
    calls, seconds = ("calls per block", "stock's calls"), ("CPU s", "stock's CPU s", "stock / ours")
    print_table(("policy", "frames", "patches", "pass", *calls, *seconds, "difference"), rows)
    seconds = ("whole pass, CPU s", "key, CPU s", "mergers, CPU s", "whole / kept")
    print_table(("policy", "frames", "patches", "features, MB in bfloat16", *seconds), parts)


def towers(size: PublishedSize) -> tuple[SceneTower, nn.Module]:
    """Ours and stock's, with the same random weights, float32, of this size."""
    config = model_config(size, train_tokenizer(VOCABULARY).get_vocab())["vision_config"]
    vision = AutoConfig.for_model(size.family.model_type, vision_config=config).vision_config
    vision._attn_implementation = "sdpa"
    torch.manual_seed(0)
    ours = policy_class(size.family).tower_class(vision, ScenesConfig())
    stock = STOCK[size.family.model_type](copy.deepcopy(vision))
    for tower in (ours, stock):
        tower.patch_embed = nn.Identity()
    stock.load_state_dict(ours.state_dict())
    return ours, stock


def compare(
    name: str, ours: SceneTower, stock: nn.Module, block: Block, scenes: int, repeats: int
) -> list[tuple[object, ...]]:
    """Both at one frame size: forward alone, and with gradients."""
    grid, size = grid_of(ours, block, scenes)
    patches = grid.scenes * grid.height * grid.width
    embedded = torch.randn(patches, ours.config.hidden_size)
    passes: tuple[Callable[[], torch.Tensor], ...] = (
        lambda: ours(embedded, [grid])[0],
        lambda: stock(embedded, grid_thw=torch.tensor([grid])).pooler_output,
    )
    calls = [calls_per_block(encode, len(ours.blocks)) for encode in passes]
    with torch.no_grad():
        difference = float((passes[0]() - passes[1]()).abs().max())
    rows: list[tuple[object, ...]] = []
    for gradients in (False, True):
        seconds = [[cpu_s(encode, gradients) for encode in passes] for _ in range(repeats)]
        mine, its = zip(*seconds, strict=True)
        spread = [median_and_range(values, ".2f") for values in (mine, its, [b / a for a, b in seconds])]
        what = "with gradients" if gradients else "forward"
        rows.append((name, size, patches, what, *calls, *spread, f"{difference:.1e}"))
    return rows


@torch.no_grad()
def kept_against_whole(name: str, tower: SceneTower, block: Block, scenes: int, repeats: int) -> tuple[object, ...]:
    """A pass of a whole tower over a block of frame pairs, and what a block whose features are kept takes."""
    grid, size = grid_of(tower, block, scenes)
    patches, side = grid.scenes * grid.height * grid.width, tower.config.patch_size
    embedded = torch.randn(patches, tower.config.hidden_size)
    pixels = np.random.default_rng(0).integers(0, 256, (2 * patches, 3 * side**2), dtype=np.uint8)
    video = PackedVideo(pixels, (2,) * scenes, grid.height, grid.width, (0.0,) * scenes)
    features = tower.trunk(embedded, [grid])
    seconds = [
        (
            cpu_s(lambda: tower(embedded, [grid])[0], gradients=False),
            cpu_s(lambda: content_key(video), gradients=False),
            cpu_s(lambda: tower.merge(features, [grid]).embeddings_NE, gradients=False),
        )
        for _ in range(repeats)
    ]
    spread = [median_and_range(values, ".3f") for values in zip(*seconds, strict=True)]
    ratio = median_and_range([whole / (key + mergers) for whole, key, mergers in seconds])
    megabytes = sum(part.numel() for part in features) * 2 / 1e6
    return (name, size, patches, f"{megabytes:.1f}", *spread, ratio)


def grid_of(tower: SceneTower, block: Block, scenes: int) -> tuple[Grid, str]:
    """Patches of a block's frames, and the frames' size in pixels."""
    side = tower.config.patch_size * MERGED
    grid = Grid(scenes, *(round(pixels / side) * MERGED for pixels in (block.height, block.width)))
    return grid, f"{grid.height * side // MERGED} x {grid.width * side // MERGED}"


def calls_per_block(encode: Callable[[], torch.Tensor], blocks: int) -> str:
    """Calls of scaled_dot_product_attention in a pass, over the blocks."""
    with torch.no_grad(), SdpaCalls() as calls:
        encode()
    return f"{calls.count / blocks:.1f}"


def cpu_s(encode: Callable[[], Any], gradients: bool) -> float:
    """Seconds of processor time of one pass."""
    began = time.process_time()
    with torch.set_grad_enabled(gradients):
        tokens = encode()
    if gradients:
        tokens.sum().backward()
    return time.process_time() - began


if __name__ == "__main__":
    main()
