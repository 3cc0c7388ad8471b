"""What stands at the top level of a file: whether it is whole, and whether several files were joined in it.

Demuxers read on quietly where a file was cut, and some stop quietly where a second file begins. Where a container says
how long its parts are, both can be told. What is no part of it, at its end, says nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from envs.video.file import RegularFile

MAX_PIECES = 1_000_000  # of a file; beyond, nothing is said
_BOXES = (
    *(b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"mfra", b"sidx", b"ssix", b"meta", b"emsg", b"prft", b"pdin"),
    *(b"free", b"skip", b"wide", b"uuid", b"udta"),
)
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_OBJECTS = (
    _ASF_HEADER,
    bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c"),  # data
    bytes.fromhex("90080033b1e5cf1189f400a0c90349cb"),  # indices
    bytes.fromhex("d329e2d6da35d111903400a0c90349be"),
)
_EBML = bytes.fromhex("1a45dfa3")
_ELEMENTS = (_EBML, bytes.fromhex("18538067"), b"\xec", b"\xbf")  # of the top level: with segments, what fills up
_FLV_HEADER_BYTES = 9 + 4


@dataclass(frozen=True, slots=True)
class Layout:
    """What a walk over a file's pieces found."""

    is_whole: bool | None  # None: the container does not say
    missing_share: float = 0.0  # of its bytes
    num_files: int = 1  # joined end to end
    last_file_at: int = 0  # where the last of them begins, bytes
    is_fragmented: bool = False  # an mp4 of fragments: its header may come again


@dataclass(frozen=True, slots=True)
class _Piece:
    kind: bytes
    start: int  # in the file
    end: int | None  # in the file; None: it does not say how long it is


def read_layout(file: RegularFile, container: str) -> Layout:
    """Walk over the top level of a file.

    Args:
        container: FFmpeg's name of the format.
    """
    if container not in _READERS:
        return Layout(is_whole=None)
    read_piece, marks = _READERS[container]
    pieces = list(_pieces(file, read_piece))
    kinds = Counter(piece.kind for piece in pieces)
    num_files = max(min(kinds[mark] for mark in marks), 1)
    last_file_at = max((piece.start for piece in pieces if piece.kind == marks[0]), default=0)
    says_all = len(pieces) < MAX_PIECES and all(piece.end is not None for piece in pieces)
    end = pieces[-1].end if pieces and says_all else file.key.size
    missing_share = max(1 - file.key.size / end, 0.0)
    return Layout(missing_share == 0 if says_all else None, missing_share, num_files, last_file_at, kinds[b"moof"] > 0)


def _pieces(file: RegularFile, read_piece: Callable[[bytes, int], _Piece | None]) -> Iterator[_Piece]:
    place, number = 0, 0
    while place < file.key.size and number < MAX_PIECES:
        piece = read_piece(os.pread(file.descriptor, 32, place), place)
        if piece is None or (piece.end is not None and piece.end <= place):
            return
        yield piece
        if piece.end is None:
            return
        place, number = piece.end, number + 1


def _riff(header: bytes, place: int) -> _Piece | None:
    """AVI: RIFF chunks; a recording that was never ended says that it is empty."""
    if len(header) < 12 or header[:4] != b"RIFF":
        return None
    length = int.from_bytes(header[4:8], "little")
    return _Piece(header[8:12], place, place + 8 + length + length % 2 if length else None)


def _box(header: bytes, place: int) -> _Piece | None:
    """mp4: boxes."""
    if len(header) < 8 or header[4:8] not in _BOXES:
        return None
    length = int.from_bytes(header[:4])
    if length == 1:
        length = int.from_bytes(header[8:16])
    return _Piece(header[4:8], place, place + length if length else None)


def _element(header: bytes, place: int) -> _Piece | None:
    """Matroska: elements whose number and length tell their own lengths."""
    if not header or not header[0]:
        return None
    kind_bytes = 9 - header[0].bit_length()
    size_bytes = 9 - header[kind_bytes].bit_length() if len(header) > kind_bytes and header[kind_bytes] else 0
    body = kind_bytes + size_bytes
    if not size_bytes or header[:kind_bytes] not in _ELEMENTS or len(header) < body:
        return None
    length = int.from_bytes(header[kind_bytes:body]) & (1 << 7 * size_bytes) - 1
    is_endless = length == (1 << 7 * size_bytes) - 1
    return _Piece(header[:kind_bytes], place, None if is_endless else place + body + length)


def _tag(header: bytes, place: int) -> _Piece | None:
    """Flash: tags, each followed by its length; where the next file was put behind, its header."""
    if header[:3] == b"FLV":
        return _Piece(b"FLV", place, place + _FLV_HEADER_BYTES)
    if len(header) < 11 or header[0] & 0x1F not in (8, 9, 18):
        return None
    return _Piece(b"tag", place, place + 11 + int.from_bytes(header[1:4]) + 4)


def _object(header: bytes, place: int) -> _Piece | None:
    """Windows Media: objects named by 16 bytes; a broadcast's data object does not say how long it is."""
    if header[:16] not in _ASF_OBJECTS or len(header) < 24:
        return None
    length = int.from_bytes(header[16:24], "little")
    return _Piece(header[:16], place, place + length if length >= 24 else None)


_READERS = {  # container: what reads a piece, and the pieces that each of several joined files has
    "avi": (_riff, (b"AVI ",)),
    "mov,mp4,m4a,3gp,3g2,mj2": (_box, (b"moov", b"mdat")),
    "matroska,webm": (_element, (_EBML,)),
    "flv": (_tag, (b"FLV",)),
    "asf": (_object, (_ASF_HEADER,)),
}
