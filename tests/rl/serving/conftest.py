"""One clip."""

import numpy as np
import pytest

from envs.synthetic.clip import write_mp4


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """Noise that changes twice a second, for four seconds."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    pictures = np.random.default_rng(0).integers(0, 256, (8, 128, 160, 3), dtype=np.uint8)
    write_mp4(pictures.repeat(6, axis=0), 12, path)
    return path
