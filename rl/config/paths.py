"""Keys that name a file or a folder: `~` is the home folder, `$` is refused, code lies beside the file naming it."""

from __future__ import annotations

import re
from pathlib import Path

from rl.config.errors import require, shown
from rl.user_code.reference import CodeReference, parse_reference, taken_from

PATHS = re.compile(
    r"output_dir|cache_dir|resume|init_from|policy\.(?:path|adapter)|data\.(?:train|held_out)\.(?:path|video_root)|data\.quarantine"
    r"|cold_start\.traces\.(?:path|video_root)|learner\.deepspeed_config|evaluation\.(?:path|video_root)|trainer\.remote"
    r"|finetune\.sources\.[^.]+\.(?:path|media_root)"
)
CODE = re.compile(  # "path/file.py:name", among other things
    r"rewards\.[^.]+\.fn|data\.(?:train|held_out)\.format|cold_start\.traces\.format|evaluation\.benchmark|retrieval\.tools\[\d+\]"
)
FILE_URL = re.compile(r"^file:(?://[^/]*)?")


def is_path(key: str) -> bool:
    """Whether a dotted key names a file or a folder."""
    return PATHS.fullmatch(key) is not None


def as_path(key: str, text: str, folder: Path) -> str:
    """What a key that may name a file stands for; of any other key the text itself.

    Args:
        folder: where the file lies that holds the key; code is named relative to it. All other relative paths are taken
            from the working directory.
    Raises:
        ConfigError: it holds a variable of the shell, is a URL, or names the home folder of nobody.
    """
    if CODE.fullmatch(key):
        reference = parse_reference(text)
        if reference is None or not reference.is_file:
            return text
        source = _expanded(key, reference.source, f":{reference.name}")
        return taken_from(str(CodeReference(source, reference.name)), folder)
    return _expanded(key, text) if is_path(key) else text


def _expanded(key: str, path: str, rest: str = "") -> str:
    require(
        "$" not in path,
        f"{key}: {shown(path + rest)}: variables of the shell are not read here; write the path itself, ~ for the home "
        "folder, or ${oc.env:DYNFRAME_NAME} for a variable called DYNFRAME_NAME",
    )
    is_url = path.startswith("file:") and key != "trainer.remote"
    require(not is_url, f"{key}: {shown(path)} is a URL; write the path, as {shown(FILE_URL.sub('', path))}")
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        require(False, f"{key}: {shown(path)}: there is no user {shown(path[1:].partition('/')[0])}")
        raise
