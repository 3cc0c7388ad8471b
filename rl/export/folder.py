"""An export: a policy's folder that a stranger can use, with its code, its processor and a model card beside it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rl.export.portable_code import auto_map, portable_files, processor_map
from rl.policy.configuration import configuration_class, read_configuration
from rl.policy.episode_settings import VIDEO_PROCESSOR
from rl.policy.families import family_of, read_config
from rl.policy.policy_folder import scenes_of
from rl.policy.processor import Processor
from rl.policy.weight_files import require_disk_space

PROCESSOR_CONFIG, PROCESSOR_CLASS = "processor_config.json", "FlexiVideoProcessor"
VIDEO_PROCESSOR_CONFIG = "video_preprocessor_config.json"  # by it vLLM chooses who decodes files
CARD = "README.md"


def write_export(policy: Path, folder: Path, episode: Mapping[str, Any], card: str) -> None:
    """Write `folder` from a policy's folder of ours. Published by a rename: whole or not there.

    Args:
        episode: `coarse`, `retrieval` and `prompt`, as the exported processor takes them.
        card: the text of README.md.
    Raises:
        PolicyFilesError: the policy's files cannot be used.
        NotPortableError: this package's own modules need what a stranger has not.
    """
    family = family_of(policy)
    scenes = scenes_of(read_configuration(policy))
    processor = Processor.from_pretrained(policy, scenes)
    own = configuration_class(family)
    config = read_config(policy / "config.json")
    config |= {"model_type": family.own_model_type, "auto_map": auto_map(family, own.__name__)}
    about = {
        "processor_class": PROCESSOR_CLASS,
        "auto_map": processor_map(PROCESSOR_CLASS),
        "geometry": geometry_section(processor),
        "scenes": asdict(scenes),
        "episode": dict(episode),
    }
    require_disk_space(folder.parent, sum(path.stat().st_size for path in policy.iterdir()), f"the export of {policy}")
    with draft_of(folder) as draft:
        shutil.copytree(policy, draft, dirs_exist_ok=True)
        _write_json(draft / "config.json", config)
        _write_json(draft / PROCESSOR_CONFIG, about)
        _write_json(draft / VIDEO_PROCESSOR_CONFIG, {"video_processor_type": VIDEO_PROCESSOR})
        for name, text in (portable_files(family) | {CARD: card}).items():
            (draft / name).write_text(text, encoding="utf-8")


@contextmanager
def draft_of(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, which it becomes in the end; nothing is left of it if that fails."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        draft = Path(scratch) / folder.name
        draft.mkdir()
        yield draft
        draft.rename(folder)


def geometry_section(processor: Processor) -> dict[str, Any]:
    """What processor_config.json keeps of the model, so that the processor is whole without it."""
    geometry = processor.geometry
    return {
        "model_type": geometry.family.own_model_type,
        "patch": geometry.patch,
        "merge": geometry.merge,
        "tokens_per_second": geometry.tokens_per_second,
        "vocab_size": geometry.vocab_size,
        "opens_thought": processor.opens_thought,
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
