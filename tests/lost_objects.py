"""Objects of Ray's that are lost: they were owned by an actor, and it has died."""

import time

from tests.calibration import within


class Owner:
    def put(self, value):
        import ray

        return [ray.put(value)]


def lost(ray, value=b"gone"):
    """A reference to what can no longer be had."""
    owner = ray.remote(Owner).options(num_cpus=0).remote()
    (held,) = ray.get(owner.put.remote(value))
    ray.kill(owner)
    deadline = time.monotonic() + within(30)
    while True:  # until its death has got about
        try:
            ray.get(held, timeout=5)
        except ray.exceptions.RayError:
            return held
        assert time.monotonic() < deadline


def whole(groups):
    """Groups with all that was sampled."""
    from actors.groups import load_groups

    return load_groups(groups)
