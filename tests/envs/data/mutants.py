"""Annotation files of every format, and what accidents and other programs make of them."""

from __future__ import annotations

import gzip
import json
import random

import pyarrow
import pyarrow.parquet

ROWS = 6
REPLY = "<think>x<span>2 - 4</span><fps>3</fps><video>\ny</think><answer>B</answer>"
DM_RL = [
    {"prompt": f"<video>\nWhich «{n}»?", "video": "clip.mp4", "answer": "B", "fps": 2, "evidence": [[1, 2], [3, n]]}
    for n in range(ROWS)
]
DM_COT = [
    {"video": ["clip.mp4"], "conversations": [{"from": "human", "value": f"Q{n}?"}, {"from": "gpt", "value": REPLY}]}
    for n in range(ROWS)
]
PIECES = (  # that change what is around them
    *(b"\0", b"\r", b"\n", b"\r\n", b"\n\n", b'"', b"'", b",", b"{", b"}", b"[", b"]", b"\\", b":", b"##", b"\t", b";"),
    *(
        "\u2028".encode(),
        "\ufeff".encode(),
        b"\xff",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\\ud800",
        b"NaN",
        b"1e999",
        b"9" * 5000,
    ),
    *(b"null", b"[" * 2000, b"{}", b"clip.mp4", b"../clip.mp4", b"\x1f\x8b", b"\xff\xfe", b"PK\x03\x04"),
)


def seeds(folder):
    """A sound file of each format: (format, suffix, content)."""
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in DM_RL)
    charades = "".join(f"clip {n}.0 {n + 2}.5##person «{n}» laughs.\n" for n in range(ROWS))
    csv = "prompt,video,answer,fps\n" + "".join(f'"Which, ""{n}""?",clip.mp4,B,{n + 1}\n' for n in range(ROWS))
    columns = {key: [row[key] for row in DM_RL] for key in ("prompt", "video", "answer", "fps", "evidence")}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "seed.parquet", row_group_size=2)
    yield "dm_rl", ".jsonl", lines.encode()
    yield "dm_rl", ".json", json.dumps(DM_RL, indent=1).encode()
    yield "dm_cot", ".json", json.dumps(DM_COT).encode()
    yield "charades_sta", ".txt", charades.encode()
    yield "csv", ".csv", csv.encode()
    yield "parquet", ".parquet", (folder / "seed.parquet").read_bytes()


def mutant(content: bytes, rng: random.Random) -> bytes:
    """The content after one to three accidents."""
    for _ in range(rng.randint(1, 3)):
        content = rng.choice(ACCIDENTS)(content, rng)
    return content


def damaged_line(content: bytes, rng: random.Random) -> tuple[bytes, int]:
    """The content with bytes of one line replaced by others that end no line, and that line's number."""
    lines = content.split(b"\n")
    number = rng.choice([i for i, line in enumerate(lines) if line])
    line = bytearray(lines[number])
    for _ in range(rng.randint(1, 4)):
        line[rng.randrange(len(line))] = rng.choice([byte for byte in range(256) if byte not in b'\n\r"[{'])
    lines[number] = bytes(line)
    return b"\n".join(lines), number + 1


def _flip(content, rng):
    changed = bytearray(content or b"x")
    for _ in range(rng.randint(1, 5)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _insert(content, rng):
    at = rng.randint(0, len(content))
    return content[:at] + rng.choice(PIECES) + content[at:]


def _cut(content, rng):
    first, last = sorted(rng.randint(0, len(content)) for _ in range(2))
    return content[:first] + content[last:]


def _repeat(content, rng):
    first, last = sorted(rng.randint(0, len(content)) for _ in range(2))
    return content[:last] + content[first:last] + content[last:]


ENCODINGS = ("utf-16", "utf-32", "utf-16-be", "utf-7")
ACCIDENTS = (
    *(_flip, _insert, _insert, _cut, _repeat),
    lambda content, rng: content[: rng.randint(0, len(content))],
    lambda content, rng: content.replace(b"\n", rng.choice([b"\r", b"\r\n", b"\n\r", "\u2028".encode(), b" "])),
    lambda content, rng: content.decode("utf-8", "replace").encode(rng.choice(ENCODINGS)),
    lambda content, rng: content.decode("utf-8", "replace").encode("latin-1", "replace"),
    lambda content, rng: gzip.compress(content),
    lambda content, rng: content + content,
    lambda content, rng: b'{"data": ' + content + b"}",
)
