"""Lines are appended whole or not at all, and a torn one is cut off."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.tracking.lines import append, cut_torn_line, replace_whole


def test_text_is_appended_to_what_is_there(tmp_path):
    append(tmp_path / "log", "one\n")
    append(tmp_path / "log", "zwei: ü\n")
    assert (tmp_path / "log").read_text() == "one\nzwei: ü\n"


@given(st.text("ab\n", max_size=40), st.integers(1, 9))
def test_a_file_is_cut_back_to_its_last_whole_line_however_long_the_torn_one_is(text, block_bytes):
    with TemporaryDirectory() as folder, patch("rl.tracking.lines.BLOCK_BYTES", block_bytes):
        path = Path(folder) / "log"
        path.write_text(text)
        cut_torn_line(path)
        assert path.read_text() == "".join(line for line in text.splitlines(keepends=True) if line.endswith("\n"))


def test_a_file_that_is_not_there_has_no_torn_line(tmp_path):
    cut_torn_line(tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_a_remote_disk_that_says_only_when_a_file_is_closed_that_it_is_full_keeps_no_half_either(tmp_path, monkeypatch):
    append(tmp_path / "log", "one\n")
    opened = Path.open

    class Late:
        def __init__(self, file):
            self._file, self.write = file, file.write

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()
            raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(Path, "open", lambda path, *how, **more: Late(opened(path, *how, **more)))
        append(tmp_path / "log", "two\n")
    assert (tmp_path / "log").read_bytes() == b"one\n"


def test_a_file_that_cannot_be_written_anew_stays_what_it_was(tmp_path):
    def half(draft):
        draft.write_text("ne")
        raise OSError(28, os.strerror(28))

    (tmp_path / "log").write_text("old")
    with pytest.raises(OSError, match="No space left"):
        replace_whole(tmp_path / "log", half)
    assert [path.name for path in tmp_path.iterdir()] == ["log"] and (tmp_path / "log").read_text() == "old"
    replace_whole(tmp_path / "log", lambda draft: draft.write_text("new"))
    assert [path.name for path in tmp_path.iterdir()] == ["log"] and (tmp_path / "log").read_text() == "new"
