"""A policy on the Hugging Face hub: found in the hub's cache, or downloaded by revision.

Only the preparation downloads, before any worker starts: engines and learners run with HF_HUB_OFFLINE=1. Files are kept
in the hub's own cache (`HF_HOME`), shared with every other tool; what was interrupted goes on where it stopped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    DryRunError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from rich.console import Console

from rl.config.errors import ConfigError
from rl.config.policy import PolicyConfig
from rl.policy.token_ids import PolicyFilesError
from rl.policy.weight_files import has_weights, require_disk_space
from rl.run.console.stages import counted_stage

COMMIT = re.compile("[0-9a-f]{40}")
FILES = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "vocab.txt")  # no code, no pickles
NEEDED = ("config.json", "tokenizer.json")  # beside the weights, of every policy


def cached_snapshot(policy: PolicyConfig) -> Path | None:
    """The repository's files in the hub's cache; None if they are not all there. Nothing is asked of the hub.

    Its library knows what a commit consists of only once one of its downloads was begun for the whole of it; of a
    commit that was fetched file by file, or in part by another tool, it returns the folder as it is.
    """
    try:
        folder = Path(snapshot_download(**_asked(policy), local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if all((folder / name).is_file() for name in NEEDED) and has_weights(folder) else None


def download(policy: PolicyConfig, console: Console | None = None) -> Path:
    """The repository's files, downloaded where they are not in the hub's cache.

    Raises:
        ConfigError: no such repository or revision, no access to it, no room on the disk, or no way to the hub.
    """
    if (found := cached_snapshot(policy)) is not None and _is_commit(policy.revision):
        return found  # a commit never changes
    require_reachable(policy)
    if constants.is_offline_mode():
        return found
    with _hub_errors(policy):
        commit = HfApi().model_info(policy.path, revision=_revision(policy)).sha
        planned = snapshot_download(**_asked(policy), dry_run=True)
        missing = [file for file in planned if file.will_download]
        size = sum(file.file_size or 0 for file in missing)
        require_disk_space(_cache(), size, f"policy.path={policy.path}, downloaded to HF_HOME,")
        if missing:
            doing = f"downloading {policy.path} ({commit:.12}, {size / 1e9:.1f} GB), file by file"
            with counted_stage(console or Console(quiet=True), doing, len(missing)) as under_way:
                for file in sorted(missing, key=lambda file: file.file_size or 0):
                    hf_hub_download(policy.path, file.filename, revision=commit)
                    under_way.advance()
        return Path(snapshot_download(**_asked(policy)))


def require_reachable(policy: PolicyConfig) -> None:
    """
    Raises:
        ConfigError: what is not in the hub's cache may not be downloaded either (HF_HUB_OFFLINE).
    """
    if constants.is_offline_mode() and cached_snapshot(policy) is None:
        raise ConfigError(
            f"policy.path: no folder {policy.path}, it is not in {_cache()}, and HF_HUB_OFFLINE is set; "
            f"{by_hand(policy)}"
        )


def by_hand(policy: PolicyConfig) -> str:
    """What to do where a download is not possible from here."""
    revision = f" --revision {policy.revision}" if policy.revision else ""
    folder = f"models/{policy.path.rpartition('/')[2]}"
    return (
        f"fetch it where there is a network, `hf download {policy.path}{revision} --local-dir {folder}`, and set "
        f"policy.path={folder}"
    )


@contextmanager
def _hub_errors(policy: PolicyConfig) -> Iterator[None]:
    """The hub's refusals as errors of the configuration. Nothing of a request is repeated, so no token either."""
    asked = f"policy.path={policy.path}"
    try:
        yield
    except PolicyFilesError as error:
        raise ConfigError(str(error)) from error
    except GatedRepoError as error:
        raise ConfigError(
            f"{asked}: access is granted by its owner: accept its terms at {constants.ENDPOINT}/{policy.path}, then "
            "`hf auth login` on this machine (or set HF_TOKEN)"
        ) from error
    except RevisionNotFoundError as error:
        raise ConfigError(f"policy.revision: {asked} has no revision {_revision(policy)!r}") from error
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"{asked}: neither a folder here nor a repository at {constants.ENDPOINT} that this machine may read; "
            "check the name, or `hf auth login` if it is a private one"
        ) from error
    except (httpx2.HTTPError, HfHubHTTPError, DryRunError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        cause = error.__cause__ or error
        raise ConfigError(
            f"{asked}: {constants.ENDPOINT} did not give it ({type(cause).__name__}); give the command again to go on "
            f"where it stopped, or {by_hand(policy)}"
        ) from error


def _asked(policy: PolicyConfig) -> dict[str, Any]:
    return {"repo_id": policy.path, "revision": _revision(policy), "allow_patterns": list(FILES)}


def _revision(policy: PolicyConfig) -> str:
    return policy.revision or constants.DEFAULT_REVISION


def _is_commit(revision: str) -> bool:
    return bool(COMMIT.fullmatch(revision))


def _cache() -> Path:
    return Path(constants.HF_HUB_CACHE)
