"""The policy a run starts from: what `policy.path` may be, and the folder it becomes. Part of the composition root."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from rl.checkpoint.checkpoint import POLICY_FOLDER
from rl.checkpoint.store import CHECKPOINTS
from rl.config.errors import ConfigError, require, shown
from rl.config.file import to_dict
from rl.config.run import RunConfig
from rl.policy.adapter_files import require_adapter
from rl.policy.chat_template import opens_thought
from rl.policy.families import QWEN2_5_VL, is_ours, read_config
from rl.policy.geometry import Geometry, require_clock
from rl.policy.given_folder import require_usable
from rl.policy.processor import Processor
from rl.policy.token_ids import PolicyFilesError
from rl.policy.weight_files import read_header, require_disk_space
from rl.run.prepare.built_once import built_once, fingerprint
from rl.run.prepare.episode_context import tool_tags
from rl.run.prepare.errors import as_config_error

ON_THE_HUB = QWEN2_5_VL.on_the_hub
REMEDY = (
    "give a Hugging Face folder of Qwen2.5-VL or Qwen3-VL, or an export of ours, "
    "or leave it empty to build the tiny policy"
)


@as_config_error()
def require_given_policy(config: RunConfig) -> None:
    """Look at `policy.path` and `policy.adapter` before anything else is done: milliseconds, and no torch.

    Raises:
        ConfigError: it is not the folder of a policy that can be trained here, or of an adapter; says what to give
            instead.
    """
    if config.policy.adapter:
        require_adapter(Path(config.policy.adapter))
    given, revision = config.policy.path, config.policy.revision
    if revision and not config.policy.is_on_hub:
        told = f"is {shown(given)}" if given else "is empty"
        raise ConfigError(f"policy.revision is of a repository on the hub; policy.path {told}")
    if not given:
        from rl.policy.tiny_tokenizer import tiny_geometry

        tiny = config.policy.tiny
        return require_clock(config.policy.scenes, tiny_geometry(tiny), f"policy.tiny.family={tiny.family}")
    if (folder := local_folder(config)) is None:
        from rl.run.prepare.hub import require_reachable

        return require_reachable(config.policy)
    require(folder.exists(), f"policy.path: no folder {given}; {REMEDY}")
    require(folder.is_dir(), f"policy.path: {given} is a file; {REMEDY}")
    if not (folder / "config.json").is_file():
        raise ConfigError(f"policy.path={given}: {_why_no_policy(folder)}")
    try:
        require_usable(folder)
        require_clock(config.policy.scenes, Geometry.read(folder), folder)
    except PolicyFilesError as error:
        raise ConfigError(f"policy.path={given}: {error}") from error


def require_no_open_thought(config: RunConfig, policy_dir: Path) -> None:
    """
    Raises:
        ConfigError: the policy finds its thought open, which the replies of published conversations do not close.
    """
    require(
        not opens_thought(policy_dir),
        f"policy.path={config.policy.path}: its prompts open a <think>, which replies of conversations do not close: "
        "fine-tune the Instruct checkpoint of that size",
    )


def local_folder(config: RunConfig) -> Path | None:
    """What `policy.path` stands for: a folder, or a repository's files in the hub's cache; None: not downloaded yet."""
    if not config.policy.is_on_hub:
        return Path(config.policy.path)
    from rl.run.prepare.hub import cached_snapshot  # a second to import

    return cached_snapshot(config.policy)


def downloaded_policy(config: RunConfig, console: Console | None = None) -> Path:
    """The files of a policy that is on the hub, in the hub's cache.

    Raises:
        ConfigError: they can neither be found nor downloaded.
    """
    from rl.run.prepare.hub import download  # a second to import

    return download(config.policy, console)


def in_folder(config: RunConfig, folder: Path) -> RunConfig:
    """The same configuration with a folder for the policy, whatever repository or revision it named."""
    return replace(config, policy=replace(config.policy, path=str(folder), revision=""))


@as_config_error()
def prepare_policy(config: RunConfig, console: Console | None = None) -> Path:
    """The folder of the policy a run starts from: ours as it is, a stock one converted, or the tiny one built; one that
    is on the hub is downloaded first. To either `policy.adapter` is added.

    Args:
        console: where a download says how far it is.
    Raises:
        ConfigError: `policy.path` is neither a policy's folder nor a repository that can be downloaded.
    """
    if config.policy.is_on_hub:
        config = in_folder(config, downloaded_policy(config, console))
    require_given_policy(config)
    base = _prepared_base(config)
    return _with_adapter(config, base) if config.policy.adapter else base


def _prepared_base(config: RunConfig) -> Path:
    if not config.policy.path and (cached := tiny_folder(config)).is_dir():
        return cached
    from transformers.utils.logging import disable_progress_bar  # torch and transformers: seconds to import

    disable_progress_bar()  # a bar per weight file says nothing here
    scenes = config.policy.scenes
    if config.policy.path:
        from rl.policy.convert import prepare_policy as prepare_given

        return prepare_given(config.policy.path, scenes, Path(config.cache_dir), config.seed, tool_tags(config))
    from rl.policy.tiny import build_tiny_policy

    return built_once(
        tiny_folder(config),
        lambda folder: build_tiny_policy(config.policy.tiny, scenes, folder, config.seed, tool_tags=tool_tags(config)),
        doing="building the tiny policy",
    )


def _with_adapter(config: RunConfig, base: Path) -> Path:
    """The policy with `policy.adapter` added, in `cache_dir`: named after all files of both, by name, size and time."""
    from rl.policy.adapter import add_adapter  # torch: seconds to import

    given = Path(config.policy.adapter)
    files = sorted(file for folder in (base, given) for file in folder.iterdir() if file.is_file())
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    home = Path(config.cache_dir) / f"with-adapter-{fingerprint(stats)}"
    return built_once(home, lambda folder: add_adapter(given, base, folder), doing=f"adding {given} to {base}")


def tiny_folder(config: RunConfig) -> Path:
    """Where the policy that the project builds itself lies, or will lie."""
    made_from = {
        "tiny": to_dict(config.policy.tiny),
        "scenes": config.policy.scenes.acting,
        "seed": config.seed,
        **({"tool_tags": list(tags)} if (tags := tool_tags(config)) else {}),
    }
    return Path(config.cache_dir) / f"tiny-{fingerprint(made_from)}"


@as_config_error()
def prepare_processor(config: RunConfig) -> Processor:
    """The processor of the policy a run starts from; it needs neither a tiny policy built nor a stock one converted.

    Raises:
        ConfigError: the policy's files cannot be used, or there is no room for the conversion.
    """
    from rl.policy.tiny_tokenizer import tiny_processor

    scenes = config.policy.scenes
    if config.policy.is_on_hub and (downloaded := local_folder(config)):
        config = in_folder(config, downloaded)
    if not config.policy.path and not tiny_folder(config).is_dir():
        return tiny_processor(config.policy.tiny, scenes, tiny_folder(config), tool_tags(config))
    if config.policy.path and not is_ours(read_config(Path(config.policy.path) / "config.json")):
        from rl.policy.conversion import plan_conversion  # torch and transformers: seconds to import
        from rl.policy.convert import converted_folder

        plan = plan_conversion(Path(config.policy.path), scenes, tool_tags(config))
        converted = converted_folder(plan.source, scenes, config.cache_dir, config.seed, tool_tags(config))
        if not converted.is_dir():
            require_disk_space(converted, plan.nbytes, f"the converted copy of {plan.source} (cache_dir)")
            return plan.processor()
    return Processor.from_pretrained(prepare_policy(config), scenes)


def count_parameters(folder: Path) -> int:
    """Counted from the headers of the safetensors files; 0 where there are none.

    Raises:
        PolicyFilesError: a file is not of that form, as a Git LFS pointer is not.
    """
    headers = map(read_header, folder.glob("*.safetensors"))
    return sum(math.prod(entry.shape) for header in headers for entry in header.values())


def _why_no_policy(folder: Path) -> str:
    if not any(folder.iterdir()):
        return f"the folder is empty; was the download interrupted? `hf download {ON_THE_HUB} --local-dir {folder}`"
    if (folder / POLICY_FOLDER / "config.json").is_file():
        return f"that is a checkpoint; its policy is policy.path={folder / POLICY_FOLDER}"
    if (folder / CHECKPOINTS).is_dir():
        return f"that is a run; `dynframe export {folder} FOLDER` makes a folder of its policy"
    return f"no config.json in it; {REMEDY}"
