"""Archives of few bytes, made member by member; a real clip of a second."""

import io
import tarfile
import zipfile

import pytest

from rl.published_data.archives import archives_among
from tests.envs.video.clips import render


@pytest.fixture
def zipped(tmp_path):
    """`zipped({"a.mp4": b"…"})` or pairs of a ZipInfo and its content: the archive."""

    def make(members, name="set.zip"):
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for member, content in members.items() if isinstance(members, dict) else members:
                file.writestr(member, content)
        return archives_among([(name, path)])[0]

    return make


@pytest.fixture
def tarred(tmp_path):
    """The same as a tar; a member may be a TarInfo, whose content is then given or none."""

    def make(members, name="set.tar.gz"):
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w:gz" if name.endswith("gz") else "w") as file:
            for member, content in members.items() if isinstance(members, dict) else members:
                info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
                if content is not None:
                    info.size = len(content)
                file.addfile(info, io.BytesIO(content or b""))
        return archives_among([(name, path)])[0]

    return make


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A clip of one second."""
    return render(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=8, fps=8)
