"""A lease on other storage: put in the place of what was expected, of nothing else; out of reach, it is not lost."""

import pytest

from rl.checkpoint.lease.holder import this_process
from rl.checkpoint.lease.lease import Lease
from rl.checkpoint.remote import RemoteError
from rl.checkpoint.remote_lease import RemoteLease


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path):
    return f"file://{tmp_path}/runs" if request.param == "file" else f"memory://{tmp_path.name}/runs"


def test_only_what_is_expected_is_replaced(url):
    lease, other = RemoteLease(url, "run"), RemoteLease(url, "run")
    assert lease.read() is None and not lease.swap(b"another", b"mine")
    assert lease.swap(None, b"mine") and other.read() == b"mine"
    assert not other.swap(None, b"theirs") and not other.swap(b"stale", b"theirs")
    assert lease.swap(b"mine", b"mine again") and other.read() == b"mine again"
    assert not other.swap(b"mine", None) and lease.swap(b"mine again", None) and other.read() is None


def test_an_empty_folder_goes_with_the_lease_and_checkpoints_stay(tmp_path):
    for run, kept in (("empty", False), ("used", True)):
        lease = RemoteLease(f"file://{tmp_path}", run)
        lease.swap(None, b"mine")
        if kept:
            (tmp_path / run / "checkpoints").mkdir()
        lease.swap(b"mine", None)
        assert (tmp_path / run).exists() == kept


def test_a_remote_that_is_out_of_reach_costs_no_lease(url, monkeypatch, caplog):
    file = RemoteLease(url, "run")
    lease = Lease(file, this_process(), sleep=lambda seconds: None)
    lease.acquire()

    def unreachable():
        raise RemoteError("no route to host")

    monkeypatch.setattr(file, "read", unreachable)
    lease.beat()
    lease.beat()
    monkeypatch.undo()
    lease.beat()
    lease.check()
    assert caplog.text.count("no heartbeat could be written") == 1
    lease.release()


def test_a_storage_of_no_known_kind_is_named():
    with pytest.raises(RemoteError, match="ftq://bucket/runs"):
        RemoteLease("ftq://bucket/runs", "run")
