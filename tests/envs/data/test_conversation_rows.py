"""Rows of published data sets as conversations, and why the others are left out."""

import re

import pytest

from envs.data.conversation_rows import (
    CAPTION_OF_IMAGE,
    CAPTION_OF_VIDEO,
    FORMS,
    Media,
    MediaKind,
    load_conversations,
)
from envs.data.rows import DatasetError
from tests.envs.data.published import (
    LLAVA,
    PIXMO_ASK,
    PIXMO_CAP,
    PIXMO_CAP_QA,
    SHAREGPT4VIDEO,
    URL,
    named_after,
    write_json,
    write_lines,
    write_parquet,
)


@pytest.fixture
def root(tmp_path):
    """A folder with a clip and a picture; readers of rows open neither."""
    (tmp_path / "clips").mkdir()
    for name in ("clips/a.mp4", "clips/b.mp4", "cat.jpg", named_after(URL)):
        (tmp_path / name).write_bytes(b"-")
    return tmp_path


def read(root, form, *rows, write=write_json, suffix=".json", **options):
    return load_conversations(form, write(root / f"rows{suffix}", list(rows)), **options)


def spoken(loaded):
    """(role, parts) of the only conversation; media by kind and the file's name."""
    (conversation,) = loaded.conversations
    return [
        (message.role, *((p.kind, p.path.rpartition("/")[2]) if isinstance(p, Media) else p for p in message.parts))
        for message in conversation.messages
    ]


VIDEO, IMAGE = MediaKind.VIDEO, MediaKind.IMAGE


def test_llava_video_178k_says_image_where_its_video_goes(root):
    assert spoken(read(root, "llava", LLAVA)) == [
        ("user", (VIDEO, "a.mp4"), "\nWhat flashes?"),
        ("assistant", "A red light."),
        ("user", "How often?"),
        ("assistant", "Twice."),
    ]


@pytest.mark.parametrize(
    ("row", "first"),
    [
        ({"image": "cat.jpg"}, ("user", (IMAGE, "cat.jpg"), "\nWhat?")),
        ({"image": ["cat.jpg"]}, ("user", (IMAGE, "cat.jpg"), "\nWhat?")),
        ({"image": {"path": "cat.jpg"}}, ("user", (IMAGE, "cat.jpg"), "\nWhat?")),
        ({"video": "clips/a.mp4"}, ("user", (VIDEO, "a.mp4"), "\nWhat?")),
        ({}, ("user", "What?")),
    ],
)
def test_a_medium_whose_place_is_not_said_comes_first(root, row, first):
    told = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]
    assert spoken(read(root, "llava", {"messages": told} | row))[0] == first


def test_several_media_stand_where_their_placeholders_do(root):
    told = [{"from": "human", "value": "Is <video> like <video>?"}, {"from": "gpt", "value": "No, <video> is text."}]
    assert spoken(read(root, "llava", {"conversations": told, "video": ["clips/b.mp4", "clips/a.mp4"]})) == [
        ("user", "Is ", (VIDEO, "b.mp4"), " like ", (VIDEO, "a.mp4"), "?"),
        ("assistant", "No, <video> is text."),
    ]


@pytest.mark.parametrize("path", ["clips/a.mp4", "elsewhere/clips/a.mp4"])
def test_of_sharegpt4video_the_caption_of_the_whole_clip_is_learned(root, path):
    (root / "a.mp4").write_bytes(b"-")  # the second name: unpacked without its folders
    assert spoken(read(root, "sharegpt4video", SHAREGPT4VIDEO | {"video_path": path}, write=write_lines)) == [
        ("user", (VIDEO, "a.mp4"), f"\n{CAPTION_OF_VIDEO}"),
        ("assistant", "A field that brightens."),
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (PIXMO_CAP, [CAPTION_OF_IMAGE, "A cat on a mat."]),
        (PIXMO_ASK, ["What sits there?", "A cat."]),
        (PIXMO_CAP_QA, ["What sits there?", "A cat.", "On what?", "On a mat."]),
    ],
)
@pytest.mark.parametrize(("write", "suffix"), [(write_parquet, ".parquet"), (write_lines, ".jsonl")])
def test_pixmo_is_read_as_published(root, row, said, write, suffix):
    turns = spoken(read(root, "pixmo", row, write=write, suffix=suffix))
    assert turns[0] == ("user", (IMAGE, named_after(URL)), f"\n{said[0]}")
    assert [turn[1] for turn in turns[1:]] == said[1:]


def test_the_image_of_a_url_is_found_under_any_of_its_names(root, tmp_path):
    (root / named_after(URL)).unlink()
    for name in ("cat.png", f"{PIXMO_ASK['image_sha256']}.jpg"):  # the URL's own; its content's
        (root / name).write_bytes(b"-")
        assert spoken(read(root, "pixmo", PIXMO_ASK))[0][1] == (IMAGE, name)


def test_what_captions_answer_can_be_asked_otherwise(root):
    assert "Tell me all." in spoken(read(root, "pixmo", PIXMO_CAP, question="Tell me all."))[0][2]


BAD = [
    ("llava", LLAVA | {"video": "clips/none.mp4"}, "video 'clips/none.mp4' cannot be found under .*No such file"),
    ("llava", LLAVA | {"video": None, "image": "none.jpg"}, "image 'none.jpg' cannot be found"),
    ("llava", LLAVA | {"video": "../secret.mp4"}, "cannot be found under|lies outside .*media_root"),
    ("llava", LLAVA | {"video": None}, "stands 1 times in its questions, but it names 0 media"),
    ("llava", LLAVA | {"video": 7}, "'video' must name a file, or a list of them, got 7"),
    ("llava", LLAVA | {"conversations": LLAVA["conversations"][:3]}, "ends with the user: .* drop its last turn"),
    ("llava", LLAVA | {"conversations": LLAVA["conversations"][1:]}, "begins with the assistant"),
    ("llava", LLAVA | {"conversations": LLAVA["conversations"][::2]}, "same side speaks twice"),
    ("llava", LLAVA | {"conversations": []}, "'conversations' must be a list of turns"),
    ("llava", LLAVA | {"conversations": [{"from": "bing", "value": "?"}]}, "turn 1 of 'conversations' is from 'bing'"),
    ("llava", LLAVA | {"conversations": [{"from": "human", "value": " "}]}, "'value' must be a text"),
    ("llava", SHAREGPT4VIDEO, "'conversations' or 'messages' is missing.*format=sharegpt4video"),
    ("llava", [], "expected an object with keys"),
    ("sharegpt4video", LLAVA, "'captions' is missing, it has 'id'.*format=llava"),
    ("sharegpt4video", PIXMO_CAP, "format=pixmo"),
    ("sharegpt4video", SHAREGPT4VIDEO | {"captions": []}, "one of the whole clip .* there are 0"),
    ("sharegpt4video", SHAREGPT4VIDEO | {"captions": "A field."}, "'captions' must be a list"),
    ("sharegpt4video", SHAREGPT4VIDEO | {"video_path": "clips/none.mp4"}, "video 'none.mp4' cannot be found"),
    ("pixmo", SHAREGPT4VIDEO, "format=sharegpt4video"),
    ("pixmo", PIXMO_CAP | {"image_url": "https://example.org/x.png"}, "the image of .* is not in .*; download it"),
    ("pixmo", PIXMO_CAP | {"image_url": f"https://example.org/{'x' * 999}"}, "is not in"),
    ("pixmo", PIXMO_CAP | {"image": "none.jpg"}, "image 'none.jpg' cannot be found"),
    ("pixmo", {"image_url": URL, "points": [], "label": "cat"}, "neither 'caption' .* other sets of PixMo"),
    ("pixmo", PIXMO_ASK | {"answer": ""}, "'answer' must be a text"),
    ("pixmo", PIXMO_CAP_QA | {"question": "[USER] a [USER] b [ASSISTANT]"}, "same side speaks twice"),
]


@pytest.mark.parametrize(("form", "row", "reason"), BAD)
def test_a_row_that_cannot_be_learned_from_is_left_out_with_its_line_and_reason(root, form, row, reason):
    loaded = read(root, form, row, {"llava": LLAVA, "sharegpt4video": SHAREGPT4VIDEO, "pixmo": PIXMO_CAP}[form])
    assert len(loaded.conversations) == 1
    (rejected,) = loaded.rejected
    assert rejected.file.endswith("rows.json") and rejected.line == 1
    assert re.search(reason, rejected.reason), rejected.reason


def test_a_medium_that_a_validation_has_quarantined_costs_its_rows(root):
    loaded = read(root, "llava", LLAVA, unusable={str((root / "clips/a.mp4").resolve()): "truncated"})
    assert [row.reason for row in loaded.rejected] == ["its video is quarantined: truncated"]


@pytest.mark.parametrize(
    ("form", "path", "media_root", "said"),
    [
        ("llave", "rows.json", "", f"unknown form of conversations 'llave'; known: {', '.join(FORMS)}"),
        ("llava", "", "", "path is empty"),
        ("llava", "none.json", "", "no such annotation file"),
        ("llava", "rows.json", "none", "no such folder"),
    ],
)
def test_a_source_that_is_not_there_is_named(root, monkeypatch, form, path, media_root, said):
    monkeypatch.chdir(root)
    write_json(root / "rows.json", [LLAVA])
    with pytest.raises(DatasetError, match=said):
        load_conversations(form, path, media_root)
