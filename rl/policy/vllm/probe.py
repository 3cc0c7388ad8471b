"""Which of the kernels that an engine calls are batch-invariant on this machine. Runs in a vLLM worker, on CPU.

Every kind of layer of the loaded model is called as the engine calls it, with random inputs: linear layers, norms,
activations, rotary embeddings, paged attention, the vision tower, and what the sampler makes of the logits. A row, a
sequence or a video must have the same bits in every batch.

Legend: N rows · S sequences · H heads · D values of a row or head.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.rotary_embedding import MRotaryEmbedding
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.v1.attention.backend import AttentionMetadataBuilder, CommonAttentionMetadata

from rl.policy.batch_invariant import BatchInvariantLinear, RowPadding, linear_varies, rows_vary

ROWS = 160  # of a probe of norms, activations and positions
SEQUENCES, LONGEST = 6, 150  # of a probe of attention; tokens
ROUNDS = 3  # random batches of continued sequences
PATCHES = 16  # of a frame of the two videos that the vision tower is tried with


def choose_padding(model: nn.Module, product: BatchInvariantLinear, paddings: Sequence[RowPadding]) -> list[str]:
    """Set `product.padding` to the first with which every linear layer is batch-invariant, or leave the last.

    Returns:
        The layers that are not, even so.
    """
    layers = (LinearBase, VocabParallelEmbedding)
    weights = [layer.weight.data for layer in model.modules() if isinstance(layer, layers)]
    by_shape = {tuple(weight.shape): weight for weight in weights}
    varying: list[str] = []
    for padding in paddings:
        product.padding = padding
        varying = [f"linear layers of {shape}" for shape, weight in by_shape.items() if linear_varies(product, weight)]
        if not varying:
            break
    return varying


def varying_kernels(model: nn.Module, builders: Sequence[AttentionMetadataBuilder], block_tokens: int) -> list[str]:
    """What besides the linear layers is not batch-invariant.

    Args:
        builders: of the metadata of the model's attention layers.
        block_tokens: of the paged KV cache.
    """
    probes = itertools.chain(_row_probes(model), _attention_probes(model, builders, block_tokens), _vision_probe(model))
    return [name for name, varies in probes if varies()]


def _row_probes(model: nn.Module) -> Iterator[tuple[str, Callable[[], bool]]]:
    """Functions of rows, one of each kind and size."""
    found: dict[str, Callable[[], bool]] = {}
    for layer in model.modules():
        if isinstance(layer, RMSNorm):
            found[f"RMSNorm of {layer.hidden_size}"] = lambda layer=layer: _norm_varies(layer)
        elif isinstance(layer, MRotaryEmbedding):
            found[f"rotary embedding of {layer.head_size}"] = lambda layer=layer: _rotary_varies(layer)
        elif hasattr(layer, "act_fn") and hasattr(layer, "gate_up_proj"):
            width = layer.gate_up_proj.output_size
            found[f"{type(layer.act_fn).__name__} of {width}"] = lambda act=layer.act_fn, width=width: rows_vary(
                act, _random(ROWS, width)
            )
    vocabulary = model.config.get_text_config().vocab_size
    logits = _random(min(ROWS, 80), vocabulary)
    for function in (torch.log_softmax, torch.softmax):
        found[f"{function.__name__} of {vocabulary}"] = lambda function=function: rows_vary(
            lambda rows_ND: function(rows_ND, dim=-1, dtype=torch.float32), logits
        )
    yield from found.items()


def _norm_varies(layer: RMSNorm) -> bool:
    rows_ND, residual_ND = _random(ROWS, layer.hidden_size), _random(ROWS, layer.hidden_size, seed=1)

    def with_residual(rows_ND: Tensor, residual_ND: Tensor) -> Tensor:
        return torch.cat(layer(rows_ND.clone(), residual_ND.clone()), dim=-1)  # which work in place

    return rows_vary(lambda rows_ND: layer(rows_ND.clone()), rows_ND) or rows_vary(with_residual, rows_ND, residual_ND)


def _rotary_varies(layer: MRotaryEmbedding) -> bool:
    positions_N3 = torch.randint(0, 500, (ROWS, 3), generator=torch.Generator().manual_seed(0))
    queries_ND, keys_ND = _random(ROWS, 2 * layer.head_size), _random(ROWS, layer.head_size, seed=1)

    def rotated(positions_N3: Tensor, queries_ND: Tensor, keys_ND: Tensor) -> Tensor:
        return torch.cat(layer(positions_N3.T.contiguous(), queries_ND.clone(), keys_ND.clone()), dim=-1)

    return rows_vary(rotated, positions_N3, queries_ND, keys_ND)


def _attention_probes(
    model: nn.Module, builders: Sequence[AttentionMetadataBuilder], block_tokens: int
) -> Iterator[tuple[str, Callable[[], bool]]]:
    layers = {layer.layer_name: layer for layer in model.modules() if isinstance(layer, Attention)}
    for builder in builders:
        layer = layers[builder.layer_names[0]]
        name = f"attention of {layer.num_heads} heads of {layer.head_size}"
        yield name, AttentionProbe(layer, builder, block_tokens).varies


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one sequence that are computed in one batch; those before `first` lie in the KV cache."""

    sequence: int
    first: int
    last: int  # exclusive


class AttentionProbe:
    """An attention layer, and a few random sequences of unequal lengths in a KV cache of their own."""

    def __init__(self, layer: Attention, builder: AttentionMetadataBuilder, block_tokens: int) -> None:
        self._layer, self._builder, self._block = layer, builder, block_tokens
        self._random = torch.Generator().manual_seed(2)
        self._lengths_S = [1 + self._draw(LONGEST) for _ in range(SEQUENCES)]
        shapes = ((layer.num_heads, layer.head_size), *((layer.num_kv_heads, layer.head_size),) * 2)
        self._qkv_S = [
            tuple(_random(length, *shape, seed=10 * number + part) for part, shape in enumerate(shapes))
            for number, length in enumerate(self._lengths_S)
        ]

    def varies(self) -> bool:
        """Whether a token's result depends on the batch, on the prefix's place in the cache, or on where it ends."""
        wholes = [Chunk(sequence, 0, length) for sequence, length in enumerate(self._lengths_S)]
        alone_S = [self._attend([whole])[0] for whole in wholes]
        lasts = [Chunk(whole.sequence, whole.last - 1, whole.last) for whole in wholes]  # as in decoding
        batches = [wholes[::-1], lasts, *([last] for last in lasts)]
        for _ in range(ROUNDS):  # some decode, some continue behind a cached prefix
            order = torch.randperm(SEQUENCES, generator=self._random).tolist()
            batches.append([Chunk(s, self._draw(self._lengths_S[s]), self._lengths_S[s]) for s in order])
        return not all(
            torch.equal(result, alone_S[chunk.sequence][chunk.first : chunk.last])
            for batch in batches
            for chunk, result in zip(batch, self._attend(batch), strict=True)
        )

    def _attend(self, batch: Sequence[Chunk]) -> list[Tensor]:
        """The layer's output for each chunk, the sequences' blocks in random places of the cache."""
        layer, impl = self._layer, self._layer.impl
        blocks = -(-LONGEST // self._block)
        places = 1 + torch.randperm(len(batch) * blocks, generator=self._random).to(torch.int32)
        tables = places.view(len(batch), blocks)
        cache = torch.zeros(1 + places.numel(), layer.num_kv_heads, self._block, 2 * layer.head_size)
        slots = [self._slots(table, chunk.last) for table, chunk in zip(tables, batch, strict=True)]
        keys, values = (
            torch.cat([self._qkv_S[chunk.sequence][part][: chunk.last] for chunk in batch]) for part in (1, 2)
        )
        impl.do_kv_cache_update(layer, keys, values, cache, torch.cat(slots))
        queries, keys, values = (
            torch.cat([self._qkv_S[chunk.sequence][part][chunk.first : chunk.last] for chunk in batch])
            for part in range(3)
        )
        counts = [chunk.last - chunk.first for chunk in batch]
        written = torch.cat([slot[chunk.first :] for slot, chunk in zip(slots, batch, strict=True)])
        metadata = self._builder.build(0, self._metadata(batch, counts, tables, written))
        output = impl.forward(layer, queries, keys, values, cache, metadata, torch.empty_like(queries))
        return list(output.view(len(queries), -1).split(counts))

    def _metadata(
        self, batch: Sequence[Chunk], counts: Sequence[int], tables: Tensor, slots: Tensor
    ) -> CommonAttentionMetadata:
        starts = torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32)
        lengths_S = [chunk.last for chunk in batch]
        return CommonAttentionMetadata(
            query_start_loc=starts,
            query_start_loc_cpu=starts,
            seq_lens=torch.tensor(lengths_S, dtype=torch.int32),
            num_reqs=len(batch),
            num_actual_tokens=sum(counts),
            max_query_len=max(counts),
            max_seq_len=max(lengths_S),
            block_table_tensor=tables,
            slot_mapping=slots,
        )

    def _slots(self, table: Tensor, tokens: int) -> Tensor:
        """Where the tokens of a sequence lie in the cache."""
        token_ids = torch.arange(tokens)
        return table[token_ids // self._block].long() * self._block + token_ids % self._block

    def _draw(self, below: int) -> int:
        return int(torch.randint(below, (), generator=self._random))


def _vision_probe(model: nn.Module) -> Iterator[tuple[str, Callable[[], bool]]]:
    yield "the vision tower", lambda: _vision_varies(model)


def _vision_varies(model: nn.Module) -> bool:
    """Whether a video's tokens depend on the video beside it, or on what was encoded before it."""
    random = torch.Generator().manual_seed(3)
    values = 3 * model.config.vision_config.patch_size**2
    lengths = [[1, 2], [3, 1, 1]]  # frames of the scenes of two videos

    def encode(videos: Sequence[int]) -> list[Tensor]:
        sides = int(PATCHES**0.5)
        return list(
            model.embed_multimodal(
                patches=torch.cat([patches[video] for video in videos]),
                scene_lengths=torch.tensor([length for video in videos for length in lengths[video]]),
                shapes=torch.tensor([(len(patches[v]), len(lengths[v]), sides, sides) for v in videos]),
            )
        )

    patches = [
        torch.randint(0, 256, (sum(scenes) * PATCHES, values), generator=random, dtype=torch.uint8)
        for scenes in lengths
    ]
    first, second = encode([0])[0], encode([1])[0]
    found = [*encode([0, 1]), *encode([1, 0])]
    return not all(map(torch.equal, found, (first, second, second, first)))


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
