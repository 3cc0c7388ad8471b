"""The data of this project, so that it can be tried: clips in which a lamp goes on for a while, and a table of them.

python make_data.py FOLDER      # FOLDER/clips/*.mp4, FOLDER/train.tsv, FOLDER/held_out.tsv
"""

import random
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FPS, SECONDS, SIZE = 12, 6, 56
COLOURS = {"red": (230, 40, 40), "green": (40, 210, 60), "blue": (50, 70, 230)}


def write_clip(path: Path, colour: str, start_s: float, end_s: float) -> None:
    """A grey room; from `start_s` to `end_s` a square of this colour."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "16", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        stream.codec_context.time_base = Fraction(1, FPS)
        for number in range(FPS * SECONDS):
            picture = np.full((SIZE, SIZE, 3), 96, np.uint8)
            if start_s <= number / FPS < end_s:
                picture[14:42, 14:42] = COLOURS[colour]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def make(folder: Path, train: int = 48, held_out: int = 12) -> None:
    """Write clips and tables; the same ones each time."""
    draw = random.Random(0)
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("held_out", held_out)):
        rows = []
        for number in range(count):
            colour, start_s = draw.choice(list(COLOURS)), draw.randrange(1, 9) / 2
            write_clip(folder / "clips" / f"{name}{number}.mp4", colour, start_s, start_s + 1)
            rows.append(f"{name}{number}\t{colour}\t{start_s}\t{start_s + 1}\n")
        (folder / f"{name}.tsv").write_text("clip\tcolour\tfrom\tto\n" + "".join(rows))


if __name__ == "__main__":
    make(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
