"""Weights in transit: every tensor arrives bit for bit, whatever its type and wherever a bucket ends."""

import pytest
import torch

pytestmark = pytest.mark.ray


def named_tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(7, 3, generator=generator),
        "b.bias": torch.randn(5, generator=generator).bfloat16(),
        "c.scale": torch.randn((), generator=generator),
        "d.transposed": torch.randn(4, 6, generator=generator).T,
        "e.ids": torch.arange(11),
    }


@pytest.mark.parametrize("bucket_bytes", [1, 64, 10_000])
def test_tensors_arrive_bit_for_bit(ray_cluster, bucket_bytes):
    from actors.weight_packing import pack, unpack

    sent = named_tensors()
    arrived = dict(unpack(pack(sent.items(), bucket_bytes)))
    assert list(arrived) == list(sent)
    for name, tensor in sent.items():
        assert arrived[name].dtype == tensor.dtype and torch.equal(arrived[name], tensor)


def test_buckets_are_cut_by_size_and_every_tensor_carries_its_checksum(ray_cluster):
    from actors.weight_buckets import checksums
    from actors.weight_packing import pack
    from rl.weight_transfer.checksum import checksum, in_words

    sent = named_tensors()
    assert len(pack(sent.items(), 1)) == len(sent)
    (bucket,) = pack(sent.items(), 10_000)
    described = {tensor.name: tensor for tensor in bucket.tensors}
    assert [described[name].nbytes for name in ("a.weight", "b.bias", "c.scale")] == [84, 10, 4]
    assert checksums([bucket]) == {name: in_words(checksum(tensor).tolist()) for name, tensor in sent.items()}


def test_what_is_unpacked_lies_in_the_object_store_and_not_in_a_copy(ray_cluster):
    from actors.weight_packing import pack, unpack

    (bucket,) = pack([("w", torch.arange(2**20))], 1)
    (array,) = ray_cluster.get(bucket.data)
    ((_, tensor),) = unpack([bucket])
    assert tensor.data_ptr() == array.ctypes.data
