"""Rows of published data sets as conversations: messages of text, images and videos.

- `llava`: JSON with `conversations` (from human and gpt) or `messages` (role user and assistant), and `video` or
  `image`: LLaVA-Video-178K and the many sets of its form. `<image>` or `<video>` stands where the medium goes.
- `sharegpt4video`: JSON lines with `video_path` and `captions`; the caption of the whole clip (`idx` -1) is learned.
- `pixmo`: Parquet or JSON with `image_url` and a `caption` (cap) or `question` and `answer` (ask-model-anything,
  cap-qa), the images beside it under the names by which they were downloaded.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from urllib.parse import unquote, urlsplit

from envs.data.dataset import RejectedRow
from envs.data.hub_copy import WHOLE, Part
from envs.data.json_rows import json_rows, rows_within
from envs.data.parquet_rows import StoredBytes, parquet_rows
from envs.data.rows import (
    DatasetError,
    MissingMedia,
    UnusableRow,
    as_mapping,
    kind_of,
    missing_medium,
    one_line,
    shortened,
    text_at,
)
from envs.data.sources import NOTHING, locate_files
from envs.data.videos import confine, video_file

CAPTION_OF_VIDEO, CAPTION_OF_IMAGE = "Describe this video in detail.", "Describe this image in detail."
_PLACEHOLDER = re.compile(r"<image>|<video>")
_CAP_QA = re.compile(r"\[(USER|ASSISTANT)\]")
_ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}
_SHOWN = 12  # keys of a row in a message
_IMAGE_SUFFIXES = ("", ".jpg", ".jpeg", ".png", ".webp")


class MediaKind(StrEnum):
    """How a file is read."""

    IMAGE = "image"
    VIDEO = "video"


@dataclass(frozen=True, slots=True)
class Media:
    """An image or a video: an existing file under the source's root, or an image in a row of a Parquet file."""

    kind: MediaKind
    path: str  # of a stored image, what its row calls it
    stored: StoredBytes | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """What one side says: texts and media in order."""

    role: str  # system | user | assistant
    parts: tuple[str | Media, ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages of user and assistant in turn, a system message before them at most; the last is the assistant's."""

    conversation_id: str
    messages: tuple[Message, ...]

    @property
    def media(self) -> tuple[Media, ...]:
        """In order of appearance."""
        return tuple(part for message in self.messages for part in message.parts if isinstance(part, Media))


@dataclass(frozen=True, slots=True)
class ConversationForm:
    """How a published data set writes its rows."""

    convert: Callable[[Mapping[str, object], Path, str, str], Conversation]  # row, media root, id, what captions answer
    marks: frozenset[str]  # keys by which its rows are told from those of other forms


@dataclass(frozen=True, slots=True)
class LoadedConversations:
    """The usable rows of a file, and the others."""

    conversations: tuple[Conversation, ...]
    rejected: tuple[RejectedRow, ...]


def load_conversations(
    form: str,
    path: str | Path,
    media_root: str | Path = "",
    part: Part = WHOLE,
    *,
    question: str = "",
    unusable: Mapping[str, str] = NOTHING,
) -> LoadedConversations:
    """Read an annotation file, JSON or Parquet, into conversations. No medium is opened, but each must be there.

    Args:
        form: one of FORMS.
        media_root: every image and video must lie under it; empty: the folder of the annotation file.
        part: of a repository of the hub, where `path` is the folder of its copy.
        question: asked for captions; empty: the form's own.
        unusable: files known to be so, and why: their rows are rejected.
    Raises:
        DatasetError: there is no such form, file or folder, or the file cannot be read as a whole.
    """
    if form not in FORMS:
        raise DatasetError(f"unknown form of conversations {form!r}; known: {', '.join(FORMS)}")
    files = locate_files(path, media_root, part)
    kept: list[Conversation] = []
    rejected: list[RejectedRow] = []
    value: object = None
    for path in files.paths:
        rows = parquet_rows(path, stored=True) if path.suffix == ".parquet" else json_rows(path)
        for line, value in rows:
            try:
                if isinstance(value, UnusableRow):
                    raise value
                read = to_conversation(form, value, files.root, f"{files.name(path)}:{line}", question)
                for media in read.media:
                    if media.path in unusable:
                        raise UnusableRow(f"its {media.kind} is quarantined: {unusable[media.path]}")
                kept.append(read)
            except UnusableRow as error:
                rejected.append(RejectedRow(str(path), line, one_line(error), missing_medium(error)))
    is_row = isinstance(value, dict) and any(known.marks & value.keys() for known in FORMS.values())
    if len(rejected) == 1 and not kept and not is_row and (advice := rows_within(value)):
        rejected = [replace(rejected[0], reason=f"{advice} (as a row: {rejected[0].reason})")]
    return LoadedConversations(tuple(kept), tuple(rejected))


def to_conversation(form: str, row: object, root: Path, row_id: str, question: str) -> Conversation:
    """A row as a conversation.

    Args:
        form: one of FORMS.
        question: asked for a caption; empty: the form's own.
    Raises:
        UnusableRow: it cannot be learned from, and why.
    """
    row = as_mapping(row)
    if not FORMS[form].marks & row.keys():
        other = next((name for name, known in FORMS.items() if known.marks & row.keys()), None)
        advice = f"; it looks like a row of another data set: format={other}" if other else ""
        has = ", ".join(map(repr, itertools.islice(row, _SHOWN))) or "nothing"
        needed = " or ".join(map(repr, sorted(FORMS[form].marks)))
        raise UnusableRow(f"no row of the form {form}: {needed} is missing, it has {has}{advice}")
    return FORMS[form].convert(row, root, row_id, question)


def _llava(row: Mapping[str, object], root: Path, row_id: str, _: str) -> Conversation:
    turns = _turns(row)
    _require_turns([role for role, _ in turns])
    media = [medium for key in ("video", "image", "images") for medium in _media(row, key, root)]
    places = sum(len(_PLACEHOLDER.findall(text)) for role, text in turns if role == "user")
    if places == 0 and len(media) == 1:  # where it goes is not said: before everything else
        first = next(place for place, (role, _) in enumerate(turns) if role == "user")
        turns[first] = ("user", f"<image>\n{turns[first][1]}")
    elif places != len(media):
        raise UnusableRow(f"<image> or <video> stands {places} times in its questions, but it names {len(media)} media")
    return Conversation(row_id, _messages(turns, media))


def _sharegpt4video(row: Mapping[str, object], root: Path, row_id: str, question: str) -> Conversation:
    captions = row.get("captions")
    if not isinstance(captions, list) or not all(isinstance(caption, dict) for caption in captions):
        raise UnusableRow(f"'captions' must be a list of {{idx, content}}, got {shortened(captions)}")
    whole = [caption for caption in captions if str(caption.get("idx")).strip() == "-1"]
    if len(whole) != 1:
        raise UnusableRow(f"'captions' must hold one of the whole clip (idx -1), there are {len(whole)}")
    name = text_at(row, "video_path")
    if not os.path.isfile(root / name):  # unpacked without the folders of the archive
        name = video_file(name.rpartition("/")[2], root)
    media = Media(MediaKind.VIDEO, _confine(name, root, MediaKind.VIDEO))
    turns = [("user", f"<video>\n{question or CAPTION_OF_VIDEO}"), ("assistant", text_at(whole[0], "content"))]
    return Conversation(row_id, _messages(turns, [media]))


def _pixmo(row: Mapping[str, object], root: Path, row_id: str, question: str) -> Conversation:
    media = _pixmo_image(row, root)
    if row.get("caption") is not None:
        turns = [("user", question or CAPTION_OF_IMAGE), ("assistant", text_at(row, "caption"))]
    elif row.get("question") is not None:
        turns = [*_asked(text_at(row, "question")), ("assistant", text_at(row, "answer"))]
        _require_turns([role for role, _ in turns])
    else:
        raise UnusableRow(
            "neither 'caption' (pixmo-cap) nor 'question' and 'answer' (pixmo-ask-model-anything, pixmo-cap-qa); other "
            "sets of PixMo are not read"
        )
    _, asked = turns[0]
    return Conversation(row_id, _messages([("user", f"<image>\n{asked}"), *turns[1:]], [media]))


FORMS: Mapping[str, ConversationForm] = {
    "llava": ConversationForm(_llava, frozenset(("conversations", "messages"))),
    "sharegpt4video": ConversationForm(_sharegpt4video, frozenset(("captions",))),
    "pixmo": ConversationForm(_pixmo, frozenset(("image_url",))),
}


def _asked(text: str) -> list[tuple[str, str]]:
    """What pixmo-cap-qa writes as one question: [USER]…[ASSISTANT]…[USER]…[ASSISTANT]; else the question itself."""
    if not text.lstrip().startswith("[USER]"):
        return [("user", text)]
    _, *pieces = _CAP_QA.split(text.strip().removesuffix("[ASSISTANT]"))
    return [(_ROLES[role.lower()], said.strip()) for role, said in zip(pieces[::2], pieces[1::2], strict=True)]


def _pixmo_image(row: Mapping[str, object], root: Path) -> Media:
    """The image that is published as a URL: its `image`, or a file named after the URL or its content."""
    image = row.get("image")
    if isinstance(image, dict):
        if (stored := _stored(image, MediaKind.IMAGE, str(row.get("image_url") or ""))) is not None:
            return stored
        image = image.get("path")
    if isinstance(image, str) and image:
        return Media(MediaKind.IMAGE, _confine(image, root, MediaKind.IMAGE))
    url = text_at(row, "image_url")
    sha = row.get("image_sha256")
    last = os.path.basename(unquote(urlsplit(url).path)) if url.isprintable() else ""
    names = (hashlib.sha256(url.encode()).hexdigest(), sha if isinstance(sha, str) else "", last)
    for name in filter(None, names):
        for suffix in _IMAGE_SUFFIXES:
            if "/" not in name and os.path.isfile(root / f"{name}{suffix}"):
                return Media(MediaKind.IMAGE, _confine(f"{name}{suffix}", root, MediaKind.IMAGE))
    raise MissingMedia(
        f"the image of {shortened(url)} is not in {root}: expected is its file under the SHA-256 of the URL "
        f"({names[0][:12]}…), 'image_sha256' or the URL's own name; download it, or name it in a column 'image'",
        url,
    )


def _turns(row: Mapping[str, object]) -> list[tuple[str, str]]:
    """(role, text) of each turn."""
    key = "conversations" if "conversations" in row else "messages"
    given = row[key]
    if not isinstance(given, list) or not given:
        raise UnusableRow(f"{key!r} must be a list of turns, got {shortened(given) if given else kind_of(given)}")
    turns = []
    for place, turn in enumerate(given, start=1):
        turn = as_mapping(turn)
        said_by, says = ("from", "value") if "from" in turn else ("role", "content")
        role = turn.get(said_by)
        if not isinstance(role, str) or role not in _ROLES:
            raise UnusableRow(f"turn {place} of {key!r} is from {shortened(role)}: expected human, gpt or system")
        turns.append((_ROLES[role], text_at(turn, says)))
    return turns


def _media(row: Mapping[str, object], key: str, root: Path) -> list[Media]:
    given = row.get(key)
    if given is None or given == "":
        return []
    kind = MediaKind(key.removesuffix("s"))
    return [_medium(one, key, kind, root) for one in (given if isinstance(given, list) else [given])]


def _medium(given: object, key: str, kind: MediaKind, root: Path) -> Media:
    """A file under the root, or an image whose bytes the row holds, which are what the row means."""
    path = given
    if isinstance(given, dict):
        if (stored := _stored(given, kind, "")) is not None:
            return stored
        path = given.get("path")
    if not isinstance(path, str) or not path:
        raise UnusableRow(f"{key!r} must name a file, or a list of them, got {shortened(given)}")
    return Media(kind, _confine(path, root, kind))


def _stored(cell: Mapping[str, object], kind: MediaKind, name: str) -> Media | None:
    """The image that a cell {path, bytes} of a table holds; None: it holds none.

    Args:
        name: what the row calls it; empty: its path in the cell, or where it stands.
    Raises:
        UnusableRow: it holds a video, which is decoded from a file, and there is no file of it.
    """
    stored = cell.get("bytes")
    if not isinstance(stored, StoredBytes):
        return None
    if kind is MediaKind.VIDEO:
        if cell.get("path"):
            return None  # its file may be there
        raise UnusableRow(
            f"{stored.column!r}: a video's bytes in a table are not read; write them to files, name these"
        )
    place = f"{stored.file}:{stored.row}:{stored.place or 0}"
    return Media(kind, name or str(cell.get("path") or place), stored)


def _confine(name: str, root: Path, kind: MediaKind) -> str:
    return confine(name, root, kind.value, "media_root")


def _messages(turns: Sequence[tuple[str, str]], media: Sequence[Media]) -> tuple[Message, ...]:
    """Turns as messages, media in the places of their placeholders, which only questions have."""
    left = iter(media)
    return tuple(Message(role, _parts(role, text.strip(), left)) for role, text in turns)


def _require_turns(roles: Sequence[str]) -> None:
    """
    Raises:
        UnusableRow: the two sides do not take turns, or the assistant does not have the last word.
    """
    spoken = [role for role in roles if role != "system"]
    if "system" in roles[1:]:
        raise UnusableRow("a system message stands behind the first turn")
    if not spoken or spoken[0] != "user":
        raise UnusableRow("the conversation begins with the assistant: there is no question to its first reply")
    if any(here == after for here, after in itertools.pairwise(spoken)):
        raise UnusableRow("the same side speaks twice in a row: join its turns")
    if spoken[-1] == "user":
        raise UnusableRow("the conversation ends with the user: there is no reply to learn from; drop its last turn")


def _parts(role: str, text: str, left: Iterator[Media]) -> tuple[str | Media, ...]:
    if role != "user":
        return (text,)
    texts = _PLACEHOLDER.split(text)
    parts: list[str | Media] = [texts[0]]
    for after in texts[1:]:
        parts += [next(left), after]
    return tuple(part for part in parts if part)
