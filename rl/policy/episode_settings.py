"""What a policy's folder says of the episodes it was trained in: `episode` of processor_config.json, as in exports.

Which coarse frames the policy saw, what its looks could ask for, what stood around the question. Serving and
`dynframe ask` show it the same again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rl.config.data import CoarseFramesConfig, PromptConfig, RetrievalConfig
from rl.config.errors import ConfigError
from rl.policy.families import read_config
from rl.policy.token_ids import PolicyFilesError

PROCESSOR_CONFIG = "processor_config.json"
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
            PolicyFilesError: the folder's processor_config.json cannot be used.
        """
        path = Path(folder) / PROCESSOR_CONFIG
        found = read_config(path).get("episode") if path.is_file() else None
        if found is None:
            return cls()
        try:
            return cls(
                CoarseFramesConfig(**found["coarse"]),
                RetrievalConfig(**found["retrieval"]),
                PromptConfig(**found["prompt"]),
            )
        except (KeyError, TypeError, ConfigError) as error:
            raise PolicyFilesError(f"{path}: `episode` cannot be used ({error!r:.200}); export again") from error
