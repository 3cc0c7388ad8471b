"""The policy a run starts from: what `policy.path` may be, and the folder it becomes. Part of the composition root."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

from rl.checkpoint.checkpoint import POLICY_FOLDER
from rl.checkpoint.store import CHECKPOINTS
from rl.config.errors import ConfigError, require, shown
from rl.config.file import to_dict
from rl.config.run import RunConfig
from rl.policy.families import QWEN2_5_VL, family_of
from rl.policy.geometry import Geometry
from rl.policy.policy_folder import require_inert
from rl.policy.processor import Processor
from rl.policy.token_ids import PolicyFilesError
from rl.run.prepare.built_once import built_once, fingerprint
from rl.run.prepare.errors import as_config_error

ON_THE_HUB = QWEN2_5_VL.on_the_hub
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
REMEDY = (
    "give a Hugging Face folder of Qwen2.5-VL or Qwen3-VL, or an export of ours, "
    "or leave it empty to build the tiny policy"
)


@as_config_error()
def require_given_policy(config: RunConfig) -> None:
    """Look at `policy.path` before anything else is done: milliseconds, and no torch.

    Raises:
        ConfigError: it is not the folder of a policy that can be trained here; says what to give instead.
    """
    given = config.policy.path
    if not given:
        return
    folder = Path(given)
    if not folder.exists():
        require(
            HUB_ID.fullmatch(given) is None,
            f"policy.path: no folder {shown(given)}, and a run downloads nothing; fetch it with "
            f"`hf download {given} --local-dir models/{folder.name}` and set policy.path=models/{folder.name}",
        )
        raise ConfigError(f"policy.path: no folder {given}; {REMEDY}")
    require(folder.is_dir(), f"policy.path: {given} is a file; {REMEDY}")
    if not (folder / "config.json").is_file():
        raise ConfigError(f"policy.path={given}: {_why_no_policy(folder)}")
    try:
        family_of(folder)
        require_inert(folder)
        require(
            any(folder.glob("*.safetensors")),
            f"policy.path={given}: no weights (*.safetensors) in it; was it copied in full?",
        )
        Geometry.read(folder)  # a clock that is not told
    except PolicyFilesError as error:
        raise ConfigError(f"policy.path={given}: {error}") from error


@as_config_error()
def prepare_policy(config: RunConfig) -> Path:
    """The folder of the policy a run starts from: ours as it is, a stock one converted, or the tiny one built.

    Raises:
        ConfigError: `policy.path` is not a folder, or not a policy's.
    """
    require_given_policy(config)
    if not config.policy.path and (cached := tiny_folder(config)).is_dir():
        return cached
    from transformers.utils.logging import disable_progress_bar  # torch and transformers: seconds to import

    disable_progress_bar()  # a bar per weight file says nothing here
    scenes = config.policy.scenes
    if config.policy.path:
        from rl.policy.convert import prepare_policy as prepare_given

        return prepare_given(config.policy.path, scenes, Path(config.cache_dir), config.seed)
    from rl.policy.tiny import build_tiny_policy

    return built_once(
        tiny_folder(config),
        lambda folder: build_tiny_policy(config.policy.tiny, scenes, folder, config.seed),
        doing="building the tiny policy",
    )


def tiny_folder(config: RunConfig) -> Path:
    """Where the policy that the project builds itself lies, or will lie."""
    made_from = {
        "tiny": to_dict(config.policy.tiny),
        "scenes": to_dict(config.policy.scenes),
        "seed": config.seed,
    }
    return Path(config.cache_dir) / f"tiny-{fingerprint(made_from)}"


@as_config_error()
def prepare_processor(config: RunConfig) -> Processor:
    """The processor of the policy a run starts from; a tiny policy need not be built for it.

    Raises:
        ConfigError: the policy's files cannot be used.
    """
    from rl.policy.tiny_tokenizer import tiny_processor

    if not config.policy.path and not tiny_folder(config).is_dir():
        return tiny_processor(config.policy.tiny, config.policy.scenes, tiny_folder(config))
    return Processor.from_pretrained(prepare_policy(config), config.policy.scenes)


def count_parameters(folder: Path) -> int:
    """Counted from the headers of the safetensors files: 8 bytes of length, then JSON. 0 where there are none.

    Raises:
        PolicyFilesError: a file is not of that form, as a Git LFS pointer is not.
    """
    return sum(_parameters_of(path) for path in folder.glob("*.safetensors"))


def _parameters_of(path: Path) -> int:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise PolicyFilesError(f"{path}: not a safetensors file; was it downloaded in full?")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise PolicyFilesError(f"{path}: not a safetensors file ({error})") from error
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _why_no_policy(folder: Path) -> str:
    if not any(folder.iterdir()):
        return f"the folder is empty; was the download interrupted? `hf download {ON_THE_HUB} --local-dir {folder}`"
    if (folder / POLICY_FOLDER / "config.json").is_file():
        return f"that is a checkpoint; its policy is policy.path={folder / POLICY_FOLDER}"
    if (folder / CHECKPOINTS).is_dir():
        return f"that is a run; `dynframe export {folder} FOLDER` makes a folder of its policy"
    return f"no config.json in it; {REMEDY}"
