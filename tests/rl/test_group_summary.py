"""What the driver knows of a group: what its metrics and its dealing need, in a few hundred bytes a trajectory."""

import pickle

from rl.group_summary import BlockSummary, summarise
from rl.tracking.fingerprint import group_digests
from rl.tracking.records import leading_groups
from rl.trajectory import Segment
from tests.remote_groups import remote


def test_a_summary_has_lengths_calls_versions_and_outcomes(trajectory, scored_group, block):
    looked, answered = trajectory(sampling=2, reasoning=3, frames=block("look", 4), version=7), trajectory(0, 5)
    group = scored_group([looked, answered], [(1.0, 0.0), (0.0, 0.0)], coarse_frames=block("v0")).group
    summary = summarise(group, group_digests(group))
    first, second = summary.trajectories_G
    assert [(t.context_tokens, t.sampled_tokens, t.policy_version, t.segment) for t in first.turns] == [
        (1, 2, 7, Segment.SAMPLING),
        (1, 3, 7, Segment.REASONING),
    ]
    assert first.turns[1].block == BlockSummary("look", 4, 1, 28, 28) and summary.coarse_block.digest == "v0"
    assert (first.calls, first.granted_calls, second.calls) == (looked.calls, (), ())
    assert (first.tokens, first.sampled_tokens, second.tokens) == (7, 5, 6)


def test_its_size_does_not_grow_with_tokens(trajectory, scored_group):
    def weight(tokens):
        group = scored_group([trajectory(tokens, tokens)] * 8, [(0.0, 0.0)] * 8).group
        return len(pickle.dumps(summarise(group, group_digests(group)), protocol=5))

    assert weight(1_000) < weight(1) + 100 and weight(1_000) < 8 * 500


def test_whole_groups_are_recorded_until_there_are_enough_trajectories(trajectory, scored_group):
    groups = [remote(scored_group([trajectory()] * 4, [(0.0, 0.0)] * 4).group)] * 3
    assert [leading_groups(groups, most) for most in (0, 1, 4, 5, 12, 99)] == [0, 1, 1, 2, 3, 3]
