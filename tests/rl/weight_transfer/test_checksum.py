"""Checksums of tensors: plain loops give the same, whatever differs shows, and shards add up to the whole."""

import pytest
import torch

from rl.weight_transfer.checksum import BLOCK_ROWS, ROW_WORDS, checksum, in_words, shard_checksum

SHAPES = {
    "scalar": ((), torch.float32),
    "empty": ((0, 3), torch.float32),
    "no whole word": ((3,), torch.bfloat16),
    "a word and a half": ((3,), torch.float32),
    "a row and some": ((ROW_WORDS + 3, 3), torch.bfloat16),
    "a block and some": ((2 * BLOCK_ROWS + 3, ROW_WORDS + 1), torch.bfloat16),
    "bytes": ((1, 4099), torch.int8),
}


def random_tensor(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    count = torch.Size(shape).numel() * dtype.itemsize
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator).view(dtype).view(shape)


def by_loops(tensor):
    data = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    words = [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)]
    return [sum(words) % 2**64, sum(place * word for place, word in enumerate(words, 1)) % 2**64]


@pytest.mark.parametrize("kind", SHAPES)
def test_it_is_the_sum_of_words_and_of_words_times_places(kind):
    tensor = random_tensor(*SHAPES[kind])
    assert [value % 2**64 for value in checksum(tensor).tolist()] == by_loops(tensor)
    assert in_words(checksum(tensor).tolist()) == "".join(f"{value:016x}" for value in by_loops(tensor))


def test_it_does_not_depend_on_how_a_tensor_lies_in_memory():
    tensor = random_tensor((6, 5), torch.bfloat16)
    behind = random_tensor((31,), torch.bfloat16)
    behind[1:] = tensor.reshape(-1)
    for same in (tensor.T.contiguous().T, behind[1:].view(6, 5)):  # strided; at an odd address
        assert torch.equal(checksum(same), checksum(tensor))


def test_a_bit_that_flips_and_values_that_change_places_show():
    tensor = random_tensor((300, 700), torch.float32)
    flipped, swapped, turned = tensor.clone(), tensor.clone(), tensor.flip(0)
    flipped.view(torch.int32)[299, 699] ^= 1
    swapped[0, 0], swapped[299, 2] = tensor[299, 2], tensor[0, 0]
    seen = {in_words(checksum(one).tolist()) for one in (tensor, flipped, swapped, turned)}
    assert len(seen) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "dim"), [((12, 10), 0), ((12, 10), 1), ((9, 21), 1), ((12,), 0), ((9, 7), 0)])
def test_shards_add_up_to_the_whole_wherever_they_were_cut(monkeypatch, dtype, shape, dim):
    monkeypatch.setattr("rl.weight_transfer.checksum.PIECE_BYTES", 50)  # a piece is a row or two
    whole, size = random_tensor(shape, dtype), 3
    parts = enumerate(whole.split(size, dim))
    summed = sum(shard_checksum(part, shape, dim, index * size) for index, part in parts)
    assert torch.equal(summed, checksum(whole))


def test_padding_behind_the_last_shard_does_not_count():
    whole = random_tensor((7, 4), torch.float32)
    padded = torch.cat([whole, torch.full((5, 4), 3.0)])
    summed = sum(shard_checksum(padded[start : start + 4], whole.shape, 0, start) for start in (0, 4, 8))
    assert torch.equal(summed, checksum(whole))


@pytest.mark.parametrize("count", [3, ROW_WORDS, 2 * ROW_WORDS * BLOCK_ROWS + ROW_WORDS + 7])
def test_devices_without_numpy_sum_the_same(count):
    from rl.weight_transfer.checksum import _sums_of_words

    words = random_tensor((count,), torch.int64)
    behind = torch.cat([torch.zeros(5, dtype=torch.long), words])
    assert torch.equal(_sums_of_words(words.view(torch.uint8), before=5), checksum(behind))
