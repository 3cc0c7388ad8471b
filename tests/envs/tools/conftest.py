"""One clip and one processor for all tools."""

import pytest

from tests.envs.setting import make_reader
from tests.envs.tools.setting import Episodes, processor_of, quartered_clip


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tools")
    with make_reader() as reader:
        yield Episodes(quartered_clip(folder / "clip.mp4"), processor_of(folder), reader)
