"""Whatever cut the state up, every element is found again; whatever a file says, the answer is an error with its name.

The state in these tests is of two parameters, a (2, 3) and b (4,), on two ranks at stage 3: a.0-2 b.0-1 | a.3-5 b.2-3.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from rl.learner.partition import locate_fragments, require_loadable, require_same_parameters, stretches
from rl.learner.rank_files import (
    Fragment,
    Layout,
    LearnerStateError,
    RankFile,
    metadata,
    read_rank_file,
    read_rank_files,
)

SHAPES = {"a": (2, 3), "b": (4,)}
OF_RANK = [
    (Fragment("a", 0, 3, "group_0", 0), Fragment("b", 0, 2, "group_0", 3)),
    (Fragment("a", 3, 3, "group_0", 0), Fragment("b", 2, 2, "group_0", 3)),
]


@dataclass(frozen=True)
class Saved:
    """A folder with the files of two ranks; `write` replaces one of them."""

    folder: Path

    def write(self, rank=1, *, taken=2, stage=3, world=2, size=5, drop=(), tensors=None, **described):
        layout = Layout(stage, world, rank)
        kept = {f"group_0.{key}": np.zeros(size, np.float32) for key in ("master", "exp_avg", "exp_avg_sq")}
        kept |= {"group_0.step": np.array(taken, np.float32), "rng.cpu": np.zeros(8, np.uint8)} | (tensors or {})
        said = metadata(layout, taken, SHAPES, OF_RANK[rank % 2]) | described
        path = self.folder / layout.filename
        save_file(kept, path, metadata={key: value for key, value in said.items() if key not in drop})
        return path


@pytest.fixture
def saved(tmp_path):
    saved = Saved(tmp_path)
    for rank in (0, 1):
        saved.write(rank)
    return saved


def refusal(folder, zero_stage=3, world_size=2):
    with pytest.raises(LearnerStateError) as caught:
        require_loadable(folder, zero_stage, world_size)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_whole_state_is_loadable_at_any_stage_by_any_number_of_ranks(saved, zero_stage, world_size):
    require_loadable(saved.folder, zero_stage, world_size)


def test_what_was_written_is_read_back(saved):
    first, second = read_rank_files(saved.folder)
    assert (first.layout, first.steps, first.parameters) == (Layout(3, 2, 0), 2, SHAPES)
    assert (first.fragments, second.fragments) == tuple(OF_RANK)
    assert first.kept["group_0"] == ["exp_avg", "exp_avg_sq", "master", "step"]


def test_a_state_without_a_description_is_read_only_in_its_own_layout(saved):
    """As states were before their fragments were described."""
    for rank in (0, 1):
        saved.write(rank, drop=("parameters", "fragments"))
    require_loadable(saved.folder, 3, 2)
    assert "learner.num_ranks=2 (now 1)" in refusal(saved.folder, 3, 1)
    found = refusal(saved.folder, 1, 4)
    assert "rank_0.safetensors: written with learner.zero_stage=3 (now 1), learner.num_ranks=2 (now 4)" in found
    assert "policy.path" in found


def test_a_missing_file_is_named(saved):
    (saved.folder / "rank_1.safetensors").unlink()
    found = refusal(saved.folder)
    assert "rank_0.safetensors: written by 2 ranks, but 1 files lie here (rank_0.safetensors)" in found
    assert "resume=PATH" in found
    (saved.folder / "rank_0.safetensors").unlink()
    assert "rank_0.safetensors: there is no such file" in refusal(saved.folder)


def test_a_file_too_many_is_refused(saved):
    saved.write(2)
    assert "written by 2 ranks, but 3 files lie here" in refusal(saved.folder)


def test_a_gap_in_the_ranks_is_refused(saved):
    (saved.folder / "rank_1.safetensors").rename(saved.folder / "rank_2.safetensors")
    assert "rank_1.safetensors: there is no such file" in refusal(saved.folder)


def test_files_of_different_saves_are_refused(saved):
    saved.write(1, taken=3)
    assert "rank_1.safetensors: steps 3, rank_0.safetensors says 2" in refusal(saved.folder)
    saved.write(1, stage=2)
    assert "rank_1.safetensors: zero_stage 2, rank_0.safetensors says 3" in refusal(saved.folder)
    (saved.folder / "rank_1.safetensors").write_bytes((saved.folder / "rank_0.safetensors").read_bytes())
    assert "rank_1.safetensors: says it is of rank 0" in refusal(saved.folder)
    saved.write(1, parameters=json.dumps({"a": [2, 3], "b": [5]}))
    assert "rank_1.safetensors: other parameters than in rank_0.safetensors" in refusal(saved.folder)


@pytest.mark.parametrize(
    ("fragments", "message"),
    [
        ([["a", 3, 3, "group_0", 0]], "2 of 4 elements of b"),
        ([["a", 4, 2, "group_0", 0], ["b", 2, 2, "group_0", 3]], "a goes on at element 4, 3 was expected"),
        ([["a", 2, 3, "group_0", 0], ["b", 2, 2, "group_0", 3]], "a goes on at element 2, 3 was expected"),
    ],
)
def test_elements_that_are_missing_or_there_twice_are_refused(saved, fragments, message):
    saved.write(1, fragments=json.dumps(fragments))
    assert message in refusal(saved.folder, 1, 1)


HOSTILE = {
    "no layout": {"drop": ("layout",)},
    "no steps": {"drop": ("steps",)},
    "fragments without parameters": {"drop": ("parameters",)},
    "layout that is not JSON": {"layout": "{"},
    "layout that is a list": {"layout": "[]"},
    "layout that nests without end": {"layout": "[" * 100_000},
    "stage that is text": {"layout": '{"zero_stage": "3", "world_size": 2, "rank": 1, "format": 1}'},
    "stage that is true": {"layout": '{"zero_stage": true, "world_size": 2, "rank": 1, "format": 1}'},
    "stage 4": {"layout": '{"zero_stage": 4, "world_size": 2, "rank": 1, "format": 1}'},
    "rank beyond the world": {"layout": '{"zero_stage": 3, "world_size": 2, "rank": 2, "format": 1}'},
    "world of 10^30": {"layout": f'{{"zero_stage": 3, "world_size": {10**30}, "rank": 1, "format": 1}}'},
    "number of 10^5 digits": {"layout": f'{{"zero_stage": 3, "world_size": {"9" * 100_000}, "rank": 1, "format": 1}}'},
    "another format": {"layout": '{"zero_stage": 3, "world_size": 2, "rank": 1, "format": 2}'},
    "steps below 0": {"steps": "-1"},
    "steps that are NaN": {"steps": "NaN"},
    "steps that are text": {"steps": "many"},
    "shape with a negative size": {"parameters": '{"a": [-2, -3], "b": [4]}'},
    "shape with NaN": {"parameters": '{"a": [NaN], "b": [4]}'},
    "shape of 10^4 dimensions": {"parameters": json.dumps({"a": [2**60] * 10_000, "b": [4]})},
    "parameters that are a list": {"parameters": '["a", "b"]'},
    "fragments that are null": {"fragments": "null"},
    "fragment that is a number": {"fragments": "[7]"},
    "fragment of four": {"fragments": '[["a", 3, 3, "group_0"]]'},
    "fragment with a float": {"fragments": '[["a", 3.0, 3, "group_0", 0]]'},
    "fragment of nothing": {"fragments": '[["a", 3, 0, "group_0", 0]]'},
    "fragment of an unknown parameter": {"fragments": '[["c", 3, 3, "group_0", 0]]'},
    "fragment whose parameter is a list": {"fragments": '[[["a"], 3, 3, "group_0", 0]]'},
    "fragment beyond its parameter": {"fragments": '[["a", 3, 4, "group_0", 0]]'},
    "fragment beyond its masters": {"fragments": '[["a", 3, 3, "group_0", 3]]'},
    "fragment of a huge offset": {"fragments": f'[["a", 3, 3, "group_0", {2**62}]]'},
    "fragment below 0": {"fragments": '[["a", -1, 3, "group_0", 0]]'},
    "fragment of unknown masters": {"fragments": '[["a", 3, 3, "group_9", 0]]'},
    "fragment of the random state": {"fragments": '[["a", 3, 3, "rng", 0]]'},
    "fragments on top of each other": {"fragments": '[["a", 3, 3, "group_0", 0], ["b", 2, 2, "group_0", 2]]'},
    "moments of another size": {"tensors": {"group_0.exp_avg": np.zeros(4, np.float32)}},
    "a step per element": {"tensors": {"group_0.step": np.zeros(5, np.float32)}},
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_metadata_is_refused_with_the_name_of_the_file(saved, hostile):
    saved.write(1, **hostile)
    found = refusal(saved.folder)
    assert found.startswith(f"{saved.folder}/rank_1.safetensors: ")
    assert len(found) < 600  # not the metadata itself


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04\x95", b"\xff" * 8, b"\x08\0\0\0\0\0\0\0{}      ", b"PK\x03\x04" * 9]
)
def test_a_file_that_is_no_safetensors_is_refused(saved, content):
    """Empty, a pickle, a header of 2^64 bytes, a state of nothing, a zip (as torch.save writes)."""
    (saved.folder / "rank_1.safetensors").write_bytes(content)
    assert f"{saved.folder}/rank_1.safetensors: not " in refusal(saved.folder)


def test_a_pipe_in_place_of_a_file_does_not_hang(saved):
    (saved.folder / "rank_1.safetensors").unlink()
    os.mkfifo(saved.folder / "rank_1.safetensors")
    assert "rank_1.safetensors: there is no such file" in refusal(saved.folder)


numbers = st.integers() | st.floats() | st.booleans() | st.none()
words = st.sampled_from(["a", "b", "group_0", "rng", "zero_stage", "world_size", "rank", "format", ""])
anything = st.recursive(
    numbers | words,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(words, inner, max_size=4),
    max_leaves=20,
)


@given(anything.map(json.dumps) | st.text(max_size=50), st.sampled_from(["layout", "steps", "parameters", "fragments"]))
@settings(max_examples=150, deadline=None)
def test_whatever_the_metadata_says_it_is_read_or_refused_with_the_name_of_the_file(tmp_path_factory, said, key):
    path = Saved(tmp_path_factory.getbasetemp()).write(0, **{key: said})
    try:
        read_rank_file(path)
    except LearnerStateError as error:
        assert str(error).startswith(f"{path}: ")


def test_another_policy_or_another_frozen_part_is_refused_by_name(saved):
    files = read_rank_files(saved.folder)
    require_same_parameters(files, {"b": (4,), "a": (2, 3)})
    with pytest.raises(LearnerStateError) as caught:
        require_same_parameters(files, {"a": (2, 3), "head": (9,)})
    assert "1 parameters in it are not trained here (b), 1 trained here are not in it (head)" in str(caught.value)
    assert "learner.freeze_vision" in str(caught.value)
    with pytest.raises(LearnerStateError, match=r"b is \(4,\) in it, \(2, 2\) here: another policy"):
        require_same_parameters(files, {"a": (2, 3), "b": (2, 2)})


# How ZeRO cuts, as plainly as it can be said: cut(sizes, world)[rank] -> (parameter, start, numel) from offset 0 on.


def cut_whole(sizes, world):
    return [[(name, 0, size) for name, size in sizes.items()] for _ in range(world)]


def cut_end_to_end(sizes, world):
    elements = [(name, index) for name, size in sizes.items() for index in range(size)]
    share = math.ceil(len(elements) / world)
    ranks = []
    for rank in range(world):
        mine = elements[rank * share : (rank + 1) * share]
        names = dict.fromkeys(name for name, _ in mine)
        indices = {name: [index for other, index in mine if other == name] for name in names}
        ranks.append([(name, found[0], len(found)) for name, found in indices.items()])
    return ranks


def cut_each(sizes, world):
    def piece(size, rank):
        share = math.ceil(size / world)
        return min(size, rank * share), max(0, min(size, (rank + 1) * share) - rank * share)

    return [[(name, *piece(size, rank)) for name, size in sizes.items()] for rank in range(world)]


CUTS = [cut_whole, cut_end_to_end, cut_each]
layouts = st.tuples(st.sampled_from(CUTS), st.integers(1, 5))
sizes_of_parameters = st.lists(st.integers(1, 40), min_size=1, max_size=6).map(
    lambda sizes: {f"p{index}": size for index, size in enumerate(sizes)}
)


def files_of(sizes, layout):
    """Each rank's file as its header would describe it, and what is in its masters: element i of p2 is 2000 + i."""
    cut, world = layout
    files, flats = [], []
    for rank, mine in enumerate(cut(sizes, world)):
        offset, fragments, flat = 0, [], []
        for name, start, numel in mine:
            if numel:
                fragments.append(Fragment(name, start, numel, "group_0", offset))
            flat += [1000 * int(name[1:]) + index for index in range(start, start + numel)]
            offset += numel
        shapes = {name: (size,) for name, size in sizes.items()}
        described = Layout(CUTS.index(cut), world, rank)
        files.append(RankFile(Path(f"rank_{rank}"), described, 1, {}, shapes, tuple(fragments)))
        flats.append(flat)
    return files, flats


@given(sizes_of_parameters, layouts, layouts)
def test_every_cut_can_be_put_together_as_any_other(sizes, old, new):
    (files, kept), (wanted, expected) = files_of(sizes, old), files_of(sizes, new)
    for rank, file in enumerate(wanted):
        held, flat = locate_fragments(files, rank), [None] * len(expected[rank])
        for stretch in (stretch for fragment in file.fragments for stretch in stretches(fragment, held)):
            source = kept[files.index(stretch.source)]
            for index in range(stretch.numel):
                assert flat[stretch.target_offset + index] is None  # each element is copied once
                flat[stretch.target_offset + index] = source[stretch.source_offset + index]
        assert flat == expected[rank]
