"""A data set straight from the local copy of its repository: subsets and splits, shards as one, bytes in rows."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from envs.data.conversation_rows import MediaKind, load_conversations
from envs.data.dataset import load_tasks
from envs.data.hub_copy import Part, files_of
from envs.data.parquet_rows import parquet_rows, read_stored
from envs.data.rows import DatasetError, UnusableRow
from envs.image import read_image

JSONL = (".jsonl",)
CARD = """---
license: mit
configs:
- config_name: short
  default: true
  data_files:
  - {split: train, path: short/train-*}
  - {split: test, path: [short/test.jsonl]}
- config_name: long
  data_files: "long/*.jsonl"
- config_name: away
  data_files: "../../etc/*"
---
# Ours
"""


def row(number):
    return {"prompt": f"Which, {number}?", "video": "clips/a.mp4", "answer": "B"}


def write(path, *numbers):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row(number)) + "\n" for number in numbers))


@pytest.fixture
def repository(tmp_path):
    home = tmp_path / "repository"
    write(home / "short" / "train-00000-of-00002.jsonl", 1, 2)
    write(home / "short" / "train-00001-of-00002.jsonl", 3)
    write(home / "short" / "test.jsonl", 4)
    write(home / "long" / "rows.jsonl", 5)
    (home / "README.md").write_text(CARD)
    (home / "clips").mkdir()
    (home / "clips" / "a.mp4").write_bytes(b"clip")
    return home


def prompts(folder, **part):
    return [task.question for task in load_tasks("dm_rl", folder, part=Part(**part)).tasks]


def test_a_split_is_its_shards_in_order_as_the_card_says(repository):
    assert prompts(repository, split="train") == ["Which, 1?", "Which, 2?", "Which, 3?"]
    assert prompts(repository, split="test") == ["Which, 4?"]
    assert prompts(repository, subset="long") == ["Which, 5?"]
    loaded = load_tasks("dm_rl", repository, part=Part("train"))
    ids = [task.task_id for task in loaded.tasks]
    assert ids[0] == "short/train-00000-of-00002:1" and len(set(ids)) == 3


def test_a_bad_row_is_told_with_its_shard(repository):
    with (repository / "short" / "train-00001-of-00002.jsonl").open("a") as file:
        file.write('{"prompt": "no video", "answer": "B"}\n')
    (rejected,) = load_tasks("dm_rl", repository, part=Part("train")).rejected
    assert rejected.file.endswith("short/train-00001-of-00002.jsonl") and rejected.line == 2


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (Part(), r"there are 2 splits \(train, test\); say which one: split: NAME"),
        (Part("trian"), r"no split 'trian'; did you mean 'train'\?"),
        (Part(subset="lng"), r"no subset 'lng'; did you mean 'long'\?"),
        (Part(subset="away"), "lies outside of the repository"),
    ],
)
def test_what_is_not_there_or_not_meant_is_refused_with_what_is(part, said, repository):
    with pytest.raises(DatasetError, match=said):
        files_of(repository, part, JSONL)


def test_a_shard_that_was_not_downloaded_is_named(repository):
    (repository / "short" / "train-00000-of-00002.jsonl").unlink()
    with pytest.raises(
        DatasetError, match=r"of the 2 shards of 'train' in short, 1 are not there \(the first: 00000\)"
    ):
        files_of(repository, Part("train"), JSONL)


def test_a_pointer_of_git_lfs_and_a_broken_link_are_no_rows(repository):
    shard = repository / "short" / "test.jsonl"
    shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(DatasetError, match="only Git LFS's pointer"):
        files_of(repository, Part("test"), JSONL)
    shard.unlink()
    shard.symlink_to(repository / "gone")
    with pytest.raises(DatasetError, match=r"there is no file short/test\.jsonl; download it"):
        files_of(repository, Part("test"), JSONL)
    shard.unlink()
    shard.symlink_to("/etc/hostname")
    with pytest.raises(DatasetError, match="leads out of the repository"):
        files_of(repository, Part("test"), JSONL)


def test_another_format_than_the_files_is_refused_with_theirs(repository):
    with pytest.raises(DatasetError, match=r"no file that this format reads \(\.parquet\), but \.jsonl"):
        load_tasks("parquet", repository, part=Part("train"))
    with pytest.raises(DatasetError, match="`split` is for the folder of a data set's repository"):
        load_tasks("dm_rl", repository / "short" / "test.jsonl", part=Part("train"))


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train.jsonl", "test.jsonl"], {"train", "test"}),
        (["data/train-00000-of-00001.jsonl", "data/dev-00000-of-00001.jsonl"], {"train", "dev"}),
        (["training/0.jsonl", "eval/0.jsonl"], {"train", "test"}),
        (["my_val.jsonl", "rows.jsonl"], {"validation", "train"}),
        (["contested.jsonl"], {"train"}),
    ],
)
def test_without_a_card_names_tell_the_splits(names, splits, tmp_path):
    for name in names:
        write(tmp_path / name, 1)
    found = set()
    for split in ("train", "test", "validation", "dev"):
        try:
            found |= {split} if files_of(tmp_path, Part(split), JSONL) else set()
        except DatasetError:
            continue
    assert found == splits


def test_the_hubs_cache_is_read_through_its_links_rows_and_videos(repository, tmp_path):
    home = tmp_path / "datasets--acme--clips"
    snapshot = home / "snapshots" / "0a1b"
    for number, path in enumerate(sorted(path for path in repository.rglob("*") if path.is_file())):
        blob, link = home / "blobs" / str(number), snapshot / path.relative_to(repository)
        for folder in (blob.parent, link.parent, home / "refs"):
            folder.mkdir(parents=True, exist_ok=True)
        path.rename(blob)
        link.symlink_to(Path("../" * (len(link.relative_to(home).parts) - 1)) / "blobs" / str(number))
    (home / "refs" / "main").write_text("0a1b\n")
    loaded = load_tasks("dm_rl", home, part=Part("train"))
    assert len(loaded.tasks) == 3 and Path(loaded.tasks[0].video_path).read_bytes() == b"clip"
    assert load_tasks("dm_rl", snapshot, part=Part("train")).tasks == loaded.tasks


@pytest.mark.parametrize(
    "text", ["", "# no front matter\n", "---\nconfigs: 3\n---\n", "---\nconfigs:\n- {a: 1}\n---\n"]
)
def test_a_card_that_says_nothing_is_none(text, tmp_path):
    write(tmp_path / "train.jsonl", 1)
    (tmp_path / "README.md").write_text(text)
    assert len(files_of(tmp_path, Part(), JSONL)) == 1


def test_a_card_that_is_no_yaml_is_told(tmp_path):
    write(tmp_path / "train.jsonl", 1)
    (tmp_path / "README.md").write_text("---\nconfigs: [\n---\n")
    with pytest.raises(DatasetError, match="cannot be read as YAML"):
        files_of(tmp_path, Part(), JSONL)


def picture(shade):
    file = io.BytesIO()
    Image.fromarray(np.full((6, 8, 3), shade, np.uint8)).save(file, "PNG")
    return file.getvalue()


MEDIA = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def write_table(path, columns, kinds, rows_per_group=2):
    table = pyarrow.table({name: pyarrow.array(cells, kinds.get(name)) for name, cells in columns.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path, row_group_size=rows_per_group)


def shades(loaded):
    """The grey of every medium, read as a run reads it."""
    media = [medium for conversation in loaded.conversations for medium in conversation.media]
    contents = [None if medium.stored is None else read_stored(medium.stored) for medium in media]
    fit = lambda height, width: (height, width)  # noqa: E731
    return [read_image(one.path, fit, content)[0, 0, 0] for one, content in zip(media, contents, strict=True)]


def test_images_whose_bytes_a_row_holds_are_read_from_it(tmp_path):
    cells = [{"bytes": picture(10 * number), "path": None} for number in range(1, 6)]
    urls = [f"https://example.org/{number}.png" for number in range(5)]
    columns = {"image": cells, "image_url": urls, "caption": ["grey"] * 5}
    write_table(tmp_path / "data" / "train-00000-of-00001.parquet", columns, {"image": MEDIA})
    loaded = load_conversations("pixmo", tmp_path)
    assert loaded.rejected == () and shades(loaded) == [10, 20, 30, 40, 50]
    assert [one.media[0].path for one in loaded.conversations] == urls  # what is held out and learned is told apart by


def test_a_row_without_bytes_has_its_file_and_one_with_bytes_its_bytes(tmp_path):
    Image.fromarray(np.full((6, 8, 3), 99, np.uint8)).save(tmp_path / "there.png")
    cells = [{"bytes": picture(7), "path": "there.png"}, {"bytes": None, "path": "there.png"}]
    cells += [{"bytes": None, "path": "there.png"}, {"bytes": None, "path": "gone.png"}]
    columns = {"image": cells, "image_url": ["https://example.org/a.png"] * 4, "caption": ["grey"] * 4}
    write_table(tmp_path / "rows.parquet", columns, {"image": MEDIA})
    loaded = load_conversations("pixmo", tmp_path / "rows.parquet")
    assert shades(loaded) == [7, 99, 99]
    (rejected,) = loaded.rejected
    assert rejected.line == 4 and rejected.missing == "gone.png"


def test_plain_bytes_and_lists_of_images_are_read_as_well(tmp_path):
    said = [{"from": "human", "value": "<image><image>\nAlike?"}, {"from": "gpt", "value": "No."}]
    several = [[{"bytes": picture(1), "path": "a"}, {"bytes": picture(2), "path": "b"}]]
    write_table(
        tmp_path / "several.parquet", {"images": several, "conversations": [said]}, {"images": pyarrow.list_(MEDIA)}
    )
    assert shades(load_conversations("llava", tmp_path / "several.parquet")) == [1, 2]
    one = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "Grey."}]
    write_table(
        tmp_path / "plain.parquet", {"image": [picture(3)], "conversations": [one]}, {"image": pyarrow.binary()}
    )
    assert shades(load_conversations("llava", tmp_path / "plain.parquet")) == [3]


def test_no_bytes_are_read_before_they_are_needed(tmp_path, monkeypatch):
    columns = {"image": [{"bytes": b"\0" * 1000, "path": None}] * 4, "caption": ["grey"] * 4}
    write_table(tmp_path / "rows.parquet", columns, {"image": MEDIA})
    asked = []
    original = pyarrow.parquet.ParquetFile.iter_batches

    def watched(file, batch_size, row_groups=None, columns=None, **options):
        asked.append(columns)
        return original(file, batch_size, row_groups, columns, **options)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", watched)
    rows = dict(parquet_rows(tmp_path / "rows.parquet", stored=True))
    assert asked == [["image.path", "caption"]] * 2 and rows[3]["image"]["bytes"].row == 3


def test_a_video_in_a_table_and_bytes_that_are_gone_are_refused_with_the_remedy(tmp_path):
    said = [{"from": "human", "value": "<video>What?"}, {"from": "gpt", "value": "Grey."}]
    cells = [{"bytes": b"clip", "path": None}]
    write_table(tmp_path / "rows.parquet", {"video": cells, "conversations": [said]}, {"video": MEDIA})
    (rejected,) = load_conversations("llava", tmp_path / "rows.parquet").rejected
    assert "write them to files" in rejected.reason
    stored = dict(parquet_rows(tmp_path / "rows.parquet", stored=True))[1]["video"]["bytes"]
    assert read_stored(stored) == b"clip" and stored.column == MediaKind.VIDEO
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(UnusableRow, match=r"rows\.parquet:1: video cannot be read"):
        read_stored(stored)
