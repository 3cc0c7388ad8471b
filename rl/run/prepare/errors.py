"""What a stranger's data and files raise, as an error of the configuration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from envs.data.rows import DatasetError, UnusableRow
from envs.tools.toolbox import ToolTagsError
from envs.tools.users import ToolLoadError
from envs.video.reader import VideoError
from rl.config.errors import ConfigError
from rl.policy.token_ids import PolicyFilesError


@contextmanager
def as_config_error() -> Iterator[None]:
    """What is wrong with data or a policy's files is for the user to repair, like a wrong key, and ends alike."""
    try:
        yield
    except (DatasetError, UnusableRow, PolicyFilesError, VideoError, ToolLoadError, ToolTagsError) as error:
        raise ConfigError(str(error)) from error
