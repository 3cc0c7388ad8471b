"""A repository on the hub as its cache holds it once it is downloaded; the tests ask nothing of the hub itself."""

import shutil
from pathlib import Path

from huggingface_hub import constants

NAME, COMMIT = "open/tiny", "a" * 40


def put_in_cache(folder: Path, home: Path, monkeypatch) -> Path:
    """A copy of a folder as the files of `open/tiny` at `main`, and nothing that says what it should consist of."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home))
    repository = home / "models--open--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return shutil.copytree(folder, repository / "snapshots" / COMMIT)
