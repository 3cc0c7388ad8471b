"""A manifest tells what is whole, and is itself not trusted."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.checkpoint.manifest import (
    CheckpointError,
    DamagedError,
    complete_records,
    explained,
    file_record,
    manifest_text,
    parse_manifest,
    require_whole,
)
from rl.trajectory import WrittenFile

NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # SHA-256 of no bytes


def manifest_of(name="rank_0.safetensors", size=0, sha256=NOTHING, format=1):
    return json.dumps({"format": format, "files": {name: {"bytes": size, "sha256": sha256}}})


def whole(folder, **files):
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "manifest.json").write_text(manifest_text(complete_records(folder, [])))
    return folder


def test_a_file_is_known_by_its_place_size_and_content(tmp_path):
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "empty").write_bytes(b"")
    assert file_record(tmp_path, tmp_path / "policy" / "empty") == WrittenFile("policy/empty", 0, NOTHING)


def test_what_is_known_already_is_not_read_again(tmp_path):
    (tmp_path / "big").write_bytes(b"1234")
    (tmp_path / "small").write_bytes(b"")
    found = WrittenFile("big", 4, "0" * 64)  # not its SHA-256, so that reading it would show
    assert complete_records(tmp_path, [found]) == [found, WrittenFile("small", 0, NOTHING)]


@given(st.lists(st.text("ab/.", min_size=1), unique=True))
def test_what_is_listed_comes_back_and_lies_inside_the_folder_or_is_refused(names):
    files = [WrittenFile(name, 3, NOTHING) for name in names]
    try:
        parsed = parse_manifest(manifest_text(files), "here")
    except DamagedError:
        assert any({"", ".", ".."} & set(name.split("/")) for name in names)
        return
    assert parsed == files
    folder = Path("/runs/r/checkpoints/step_00000001")
    for file in parsed:
        placed = (folder / file.name).resolve()
        assert placed.is_relative_to(folder) and placed != folder


OUTSIDE = [
    "../x",
    "a/../../x",
    "/etc/passwd",
    "a//b",
    "",
    ".",
    "a/./b",
    "a\\..\\b",
    "C:/x",
    "a\0b",
    "a\nb",
    "manifest.json",
]


@pytest.mark.parametrize("name", [*OUTSIDE, "manifest.json", "a" * 2000])
def test_a_name_that_cannot_be_a_file_of_a_checkpoint_is_refused(name):
    with pytest.raises(DamagedError, match=r"here: .* is not a file of a checkpoint"):
        parse_manifest(manifest_of(name=name), "here")


@pytest.mark.parametrize("size", [-1, 1.5, "7", None, True, 2**63, 1e400])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(DamagedError, match=r"rank_0\.safetensors.* has .* bytes"):
        parse_manifest(manifest_of(size=size), "here")


@pytest.mark.parametrize("sha256", ["", "0" * 63, "g" * 64, "A" * 64, 0, None, ["0" * 64]])
def test_a_hash_that_is_none_is_refused(sha256):
    with pytest.raises(DamagedError, match="for a SHA-256"):
        parse_manifest(manifest_of(sha256=sha256), "here")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["format", "files", "a"]), inner),
)


@given(JSON)
def test_whatever_json_it_is_the_answer_is_a_list_or_a_refusal(value):
    try:
        assert isinstance(parse_manifest(json.dumps(value), "here"), list)
    except DamagedError as error:
        assert str(error).startswith("here: ")


@given(st.text() | st.just("[" * 100_000))
def test_whatever_text_it_is_the_answer_is_a_refusal(text):
    with pytest.raises(DamagedError, match=r"^here: "):
        parse_manifest(text, "here")


def test_a_link_out_of_the_checkpoint_is_not_followed(tmp_path):
    """Its size and hash are right; only its place is not."""
    (tmp_path / "secret").write_bytes(b"weights")
    (tmp_path / "step").mkdir()
    folder = whole(tmp_path / "step", weights=b"weights")
    require_whole(folder)
    (folder / "weights").unlink()
    (folder / "weights").symlink_to(tmp_path / "secret")
    with pytest.raises(DamagedError, match="a link out of the checkpoint"):
        require_whole(folder)


def test_a_manifest_too_large_to_be_one_is_not_read(tmp_path):
    folder = whole(tmp_path, weights=b"")
    with (folder / "manifest.json").open("r+b") as file:
        file.truncate(2**27)  # a hole: no room is taken
    with pytest.raises(DamagedError, match="134217728 bytes are too many"):
        require_whole(folder)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(28, "No space left on device", "/d/x"),
            "No space left on device: /d/x; make room, lower trainer",
        ),
        (OSError(30, "Read-only file system"), "Read-only file system; make it writable, or set output_dir to another"),
        (OSError(5, "Input/output error", "/d/x"), "Input/output error: /d/x"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "(os error 28); make room, lower trainer"),
        (RuntimeError("anything else"), "anything else"),
    ],
)
def test_what_the_disk_says_comes_with_what_can_be_done(error, said):
    assert said in explained(error)


def test_damage_is_a_kind_of_checkpoint_error():
    assert issubclass(DamagedError, CheckpointError)
