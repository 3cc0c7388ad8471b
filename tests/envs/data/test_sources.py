"""Formats by name, and what a source may hold."""

import pytest

from envs.data.dataset import load_tasks
from envs.data.rows import DatasetError
from envs.data.sources import Source, has_traces


@pytest.fixture
def root(tmp_path):
    (tmp_path / "rows.txt").write_text("a.mp4 B\nb.mp4 C\n")
    return tmp_path


def test_traces_are_conversations():
    assert has_traces(Source("dm_cot", "x")) and has_traces(Source("csv", "x", "", {"conversations": "talk"}))
    assert not any(has_traces(Source(format, "x")) for format in ("dm_rl", "charades_sta", "csv", "quickstart"))


def test_a_format_that_is_not_known_is_refused_with_those_that_are(root):
    with pytest.raises(DatasetError, match=r"'cvs'; did you mean 'csv'.*known: charades_sta, csv, dm_cot"):
        load_tasks("cvs", root / "rows.txt")


def test_columns_are_for_tables(root):
    with pytest.raises(DatasetError, match="format 'dm_rl' has no columns to name; `columns` is for csv and parquet"):
        load_tasks("dm_rl", root / "rows.txt", root, {"prompt": "question"})


def test_a_folder_is_no_annotation_file(root):
    with pytest.raises(DatasetError, match="is a folder; name the annotation file in it"):
        load_tasks("dm_rl", root)
