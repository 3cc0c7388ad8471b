"""Weights over a link: every type and shape arrives bit for bit, wherever buckets end, with the sender's checksums."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from rl.weight_transfer.checksum import checksum, in_words
from rl.weight_transfer.description import WeightTensor, dtype_name, in_buckets
from rl.weight_transfer.link import LinkError, MeetingPoint, listen, open_link
from rl.weight_transfer.stream import receive_weights, send_weights
from tests.actors.test_weight_buckets import named_tensors

CPU = torch.device("cpu")


@pytest.fixture
def pair():
    """(transport) -> both ends of a link with one receiver."""

    def link(transport):
        listening = listen("127.0.0.1")
        point = MeetingPoint(transport, "127.0.0.1", listening.getsockname()[1], 2, 30.0)
        with ThreadPoolExecutor(1) as other:
            receiver = other.submit(open_link, point, 1, CPU)
            return open_link(point, 0, CPU, listening), receiver.result()

    return link


@pytest.mark.parametrize("transport", ["gloo", "ipc"])
@pytest.mark.parametrize("bucket_bytes", [1, 100, 10_000])
def test_parameters_arrive_bit_for_bit(pair, transport, bucket_bytes):
    sender, receiver = pair(transport)
    sent, arrived = named_tensors(), {}
    described = [WeightTensor(name, dtype_name(value.dtype), tuple(value.shape)) for name, value in sent.items()]
    buckets = in_buckets(described, bucket_bytes)

    def load(named):
        arrived.update({name: value.clone() for name, value in named})

    with ThreadPoolExecutor(1) as other:
        received = other.submit(receive_weights, receiver, buckets, load)
        said = send_weights(sender, buckets, sent.items())
    assert said == received.result() == {name: in_words(checksum(value).tolist()) for name, value in sent.items()}
    assert list(arrived) == list(sent)
    for name, value in sent.items():
        assert arrived[name].dtype == value.dtype and torch.equal(arrived[name], value)


def test_a_receiver_that_cannot_load_fails_the_sender_too(pair):
    sender, receiver = pair("ipc")
    buckets = in_buckets([WeightTensor("a", "float32", (100,))], 1)

    def load(_):
        receiver.abort()
        raise ValueError("no such parameter")

    with ThreadPoolExecutor(1) as other:
        received = other.submit(receive_weights, receiver, buckets, load)
        with pytest.raises(LinkError):
            send_weights(sender, buckets, [("a", torch.zeros(100))])
    with pytest.raises(ValueError, match="no such parameter"):
        received.result()
