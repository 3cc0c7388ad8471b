"""episode.json: what an exported policy's folder says of the episodes it was trained in.

An excerpt of the run's configuration, under the same keys: which coarse frames the policy saw, what its looks could ask
for, what stood around the question, how much it could write. Serving and `dynframe ask` show it the same again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rl.config.data import CoarseFramesConfig, PromptConfig, RetrievalConfig
from rl.config.errors import ConfigError
from rl.config.run import RunConfig
from rl.policy.families import read_config
from rl.policy.token_ids import PolicyFilesError

EPISODE_FILE = "episode.json"
VIDEO_PROCESSOR = "FlexiVideoProcessor"  # the `video_processor_type` of a policy's folder: who decodes for it


@dataclass(frozen=True, slots=True)
class EpisodeSettings:
    """What a policy's folder says of its episodes; defaults where it says nothing."""

    coarse: CoarseFramesConfig = field(default_factory=CoarseFramesConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)

    @classmethod
    def of(cls, folder: str | Path) -> EpisodeSettings:
        """
        Raises:
            PolicyFilesError: the folder's episode.json cannot be used.
        """
        path = Path(folder) / EPISODE_FILE
        if not path.is_file():
            return cls()
        tree = read_config(path)
        try:
            return cls(
                CoarseFramesConfig(**tree["video"]["coarse"]),
                RetrievalConfig(**tree["retrieval"]),
                PromptConfig(**tree["prompt"]),
            )
        except (KeyError, TypeError, ConfigError) as error:
            raise PolicyFilesError(f"{path}: not the settings of an episode ({error!r:.200}); export again") from error


def write_episode_settings(config: RunConfig, folder: Path) -> None:
    """Write what the policy in `folder` was trained with."""
    excerpt: dict[str, Any] = {
        "video": {"coarse": asdict(config.video.coarse)},
        "retrieval": asdict(config.retrieval),
        "prompt": asdict(config.prompt),
        "rollout": {
            "max_new_tokens": config.rollout.max_new_tokens,
            "engine": {"max_model_len": config.rollout.engine.max_model_len},
        },
    }
    (folder / EPISODE_FILE).write_text(json.dumps(excerpt, indent=2) + "\n")
