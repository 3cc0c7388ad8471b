"""Links between processes: what was sent arrives, and where one member dies, gives up or hangs, all are let go of."""

import gc
import multiprocessing
import os
import signal
import threading
import time
import types
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from rl.weight_transfer.broadcast import _process_group
from rl.weight_transfer.link import LinkError, MeetingPoint, listen, open_link

CPU = torch.device("cpu")
TRANSPORTS = ("gloo", "ipc")
SIZES = (3, 4096, 1, *[2**23] * 4)  # the large ones do not fit into what sockets hold
TURN = 3  # at which something happens
PATIENCE_S = 60.0


def pattern(turn, size):
    return torch.full((size,), 7 * turn + size % 5, dtype=torch.uint8)


def receive(point, member, happens, told):
    """A receiver; what happens to the last member happens at TURN of the second use."""
    link = open_link(point, member, CPU)
    try:
        for use in range(2):
            for turn, buffer in enumerate(link.receiving(SIZES)):
                if use == 1 and turn == TURN and member == point.members - 1:
                    if happens == "dies":
                        os.kill(os.getpid(), signal.SIGKILL)
                    if happens == "gives up":
                        link.abort()
                    if happens == "hangs":
                        time.sleep(PATIENCE_S)
                assert torch.equal(buffer, pattern(turn, SIZES[turn])), (use, turn)
        told.put((member, "all"))
    except LinkError as error:
        told.put((member, f"link: {error}"))
    except Exception as error:
        told.put((member, repr(error)))


def send(link):
    for turn, buffer in enumerate(link.sending(SIZES)):
        buffer.copy_(pattern(turn, SIZES[turn]))


@pytest.fixture
def linked():
    """(transport, what happens, timeout) -> the sender's link and what two receivers tell."""
    spawning, started = multiprocessing.get_context("forkserver"), []  # this process has threads by now
    spawning.set_forkserver_preload([__name__])

    def link(transport, happens="", timeout_s=PATIENCE_S):
        listening, told = listen("127.0.0.1"), spawning.Queue()
        point = MeetingPoint(transport, "127.0.0.1", listening.getsockname()[1], 3, timeout_s)
        for member in (1, 2):
            started.append(spawning.Process(target=receive, args=(point, member, happens, told), daemon=True))
            started[-1].start()
        link = open_link(point, 0, CPU, listening)
        if happens == "dies":  # whoever started the processes sees it, and says so
            last = started[-1]
            threading.Thread(target=lambda: (last.join(), link.abort()), daemon=True).start()
        return link, told

    yield link
    for process in started:
        process.kill()
        process.join()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_was_sent_arrives_again_and_again(linked, transport):
    link, told = linked(transport)
    send(link)
    send(link)
    assert sorted(told.get(timeout=PATIENCE_S) for _ in range(2)) == [(1, "all"), (2, "all")]


@pytest.mark.parametrize(
    ("transport", "happens"),
    [
        *(("gloo", happens) for happens in ("dies", "gives up", "hangs")),
        ("ipc", "dies"),
        *(pytest.param("ipc", happens, marks=pytest.mark.soak) for happens in ("gives up", "hangs")),
    ],
)
def test_where_a_receiver_is_lost_everybody_is_let_go_of(linked, transport, happens):
    link, told = linked(transport, happens, timeout_s=1.0 if happens == "hangs" else PATIENCE_S)
    send(link)
    began = time.monotonic()
    with pytest.raises(LinkError):
        send(link)
    assert time.monotonic() - began < PATIENCE_S / 2
    for member, outcome in (told.get(timeout=PATIENCE_S) for _ in range(2 if happens == "gives up" else 1)):
        assert outcome.startswith("link: ") or (member, outcome) == (1, "all")  # it may have had all before
    with pytest.raises(LinkError):  # it stays useless
        send(link)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_where_the_sender_is_lost_receivers_are_let_go_of(linked, transport):
    link, told = linked(transport)
    send(link)
    for turn, buffer in enumerate(link.sending(SIZES)):
        if turn == TURN:
            break
        buffer.copy_(pattern(turn, SIZES[turn]))
    link.abort()
    outcomes = dict(told.get(timeout=PATIENCE_S) for _ in range(2))
    assert all(outcome.startswith("link: ") for outcome in outcomes.values()) and set(outcomes) == {1, 2}


@pytest.fixture
def no_collector():
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_link_that_was_torn_keeps_nothing(linked, no_collector, transport):
    """A policy's largest parameters lie in its buffers; another link with its own is opened at once."""
    before = memory_files()
    link, _ = linked(transport)
    send(link)
    of_torch = [getattr(buffer, "bytes", buffer) for buffer in link._buffers]
    kept = [weakref.ref(link), *map(weakref.ref, of_torch)]
    del of_torch
    link.abort()
    assert memory_files() == before
    assert [one() for one in kept[1:]] == [None, None]
    del link
    assert kept[0]() is None


def memory_files():
    return sum("memfd:weights" in os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink())


@pytest.mark.parametrize("before", [None, "3"])
def test_a_group_over_nccl_that_fails_ends_no_process(monkeypatch, before):
    """torch's constructor reads it from the environment, in which other groups of the process find what was there."""
    seen, name = [], "TORCH_NCCL_ASYNC_ERROR_HANDLING"
    if before is None:
        monkeypatch.delenv(name, raising=False)
    else:
        monkeypatch.setenv(name, before)

    class Group:
        Options = types.SimpleNamespace

        def __init__(self, *_):
            seen.append(os.environ[name])

    monkeypatch.setattr(dist, "ProcessGroupNCCL", Group, raising=False)
    _process_group(None, MeetingPoint("nccl", "127.0.0.1", 1, 2, 1.0), 0)
    assert seen == ["2"]  # CleanUpOnly
    assert os.environ.get(name) == before


def test_members_that_do_not_come_are_not_waited_for_for_ever():
    listening = listen("127.0.0.1")
    point = MeetingPoint("gloo", "127.0.0.1", listening.getsockname()[1], 2, timeout_s=1.0)
    with pytest.raises(LinkError, match="over gloo did not meet"):
        open_link(point, 0, CPU, listening)
