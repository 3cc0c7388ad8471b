"""An annotation file with this content."""

import pytest


@pytest.fixture
def file(tmp_path):
    def make(content):
        path = tmp_path / "rows"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make
