"""Small files in the published forms: LLaVA-Video-178K, ShareGPT4Video, PixMo."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

LLAVA = {
    "id": "1006-8968804598",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat flashes?"},
        {"from": "gpt", "value": "A red light."},
        {"from": "human", "value": "How often?"},
        {"from": "gpt", "value": "Twice."},
    ],
    "data_source": "0_30_s_nextqa",
    "video": "clips/a.mp4",
}
SHAREGPT4VIDEO = {
    "video_id": "a",
    "video_path": "clips/a.mp4",
    "timestamp": ["0:00:00.000", "0:00:02.000"],
    "keyframe": [0, 20],
    "captions": [{"idx": "1", "content": "A grey field."}, {"idx": "-1", "content": "A field that brightens."}],
    "zip_folder": "clips_1.zip",
}
URL = "https://example.org/pictures/cat.png?size=large"
PIXMO_CAP = {"image_url": URL, "caption": "A cat on a mat.", "transcripts": ["uh, a cat"]}
PIXMO_ASK = {"image_url": URL, "image_sha256": "0" * 64, "question": "What sits there?", "answer": "A cat."}
PIXMO_CAP_QA = PIXMO_ASK | {
    "question": "[USER] What sits there? [ASSISTANT] A cat. [USER] On what? [ASSISTANT]",
    "answer": "On a mat.",
}


def named_after(url: str) -> str:
    """As images are named that were downloaded from URLs."""
    return hashlib.sha256(url.encode()).hexdigest()


def write_json(path: Path, rows: list[dict]) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[dict]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path
