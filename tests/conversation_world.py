"""A small world in three published forms: coloured clips (LLaVA-Video-178K, ShareGPT4Video) and pictures (PixMo)."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from tests.envs.data.published import named_after, write_json, write_lines, write_parquet

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 220), "yellow": (225, 210, 40)}
SIZE = 56


def write_world(folder: Path, *, each: int = 24, seed: int = 0) -> dict[str, Path]:
    """Annotation files by form; `each` clips or pictures per form, and a broken one of each."""
    rng, names = np.random.default_rng(seed), list(COLOURS)
    drawn = [names[index % len(names)] for index in range(2 * each)]
    clips, pictures = folder / "clips", folder / "images"
    for made in (clips, pictures):
        made.mkdir(parents=True)
    for number, colour in enumerate(drawn):
        _write_clip(clips / f"{number}.mp4", _shade(colour, rng))
    (clips / "broken.mp4").write_bytes(b"<html>404</html>")
    urls = [f"https://example.org/{number}.png" for number in range(each)]
    for url, colour in zip(urls, drawn, strict=False):
        Image.fromarray(np.full((SIZE, SIZE, 3), _shade(colour, rng), dtype=np.uint8)).save(
            pictures / named_after(url), format="PNG"
        )
    (pictures / named_after("https://example.org/broken.png")).write_bytes(b"\x89PNG broken")
    first, second = drawn[:each], drawn[each:]
    return {
        "llava": write_json(
            folder / "llava.json", [*map(_llava, range(each), first), _llava("broken", "red"), {"id": 1, "video": "x"}]
        ),
        "sharegpt4video": write_lines(
            folder / "sharegpt4video.jsonl", list(map(_sharegpt4video, range(each, 2 * each), second))
        ),
        "pixmo": write_parquet(
            folder / "pixmo.parquet",
            [
                {"image_url": url, "image_sha256": "", "question": "Which colour is it?", "answer": f"It is {colour}."}
                for url, colour in zip([*urls, "https://example.org/broken.png"], [*first, "red"], strict=True)
            ],
        ),
    }


def _llava(number: object, colour: str) -> dict:
    turns = [
        ("human", "<image>\nWhich colour?"),
        ("gpt", f"{colour.capitalize()}."),
        ("human", "Is it red?"),
        ("gpt", "Yes." if colour == "red" else "No."),
    ]
    told = [{"from": said_by, "value": value} for said_by, value in turns]
    return {"id": str(number), "conversations": told, "data_source": "colours", "video": f"clips/{number}.mp4"}


def _sharegpt4video(number: int, colour: str) -> dict:
    captions = [{"idx": "1", "content": "A frame."}, {"idx": "-1", "content": f"All is {colour}."}]
    return {"video_id": str(number), "video_path": f"clips/{number}.mp4", "captions": captions, "zip_folder": "1.zip"}


def _shade(colour: str, rng: np.random.Generator) -> np.ndarray:
    return np.clip(np.array(COLOURS[colour]) + rng.integers(-25, 26, 3), 0, 255)


def _write_clip(path: Path, colour: np.ndarray, fps: int = 4, frames: int = 8) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "8", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        image = np.full((SIZE, SIZE, 3), colour, dtype=np.uint8)
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
