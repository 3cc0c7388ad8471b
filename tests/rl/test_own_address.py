"""Address and interface by which this machine talks to another."""

from rl.own_address import own_address, own_interface


def test_towards_itself_a_machine_talks_by_loopback():
    assert own_address("127.0.0.1", 9) == "127.0.0.1"
    assert own_interface("127.0.0.1", 9) in ("lo", "lo0")
