"""Groups as the driver holds them, around whole ones: the reference is the group itself where there is no Ray."""

from rl.group_summary import RemoteGroup, RolloutOrigin, summarise
from rl.tracking.fingerprint import group_digests
from rl.trajectory import ScoredGroup


def remote(group, reference=None, pixels=None, sent_s=0.0, finished_s=1.0):
    origin = RolloutOrigin(step=0, occurrence=0, greedily=False, sent_s=sent_s, finished_s=finished_s)
    return RemoteGroup(group.task, summarise(group, group_digests(group)), reference or group, pixels, origin)


def remote_scored(scored):
    return [ScoredGroup(remote(one.group), one.rewards_G) for one in scored]


def load(groups):
    return [group.reference for group in groups]
