"""The policy's folder, looked at before anything of it is loaded."""

from __future__ import annotations

from rl.config.errors import ConfigError
from rl.config.run import RunConfig
from rl.policy.token_ids import PolicyFilesError
from rl.run.preflight.findings import Finding, Level, on_one_line
from rl.run.prepare.policy import count_parameters, local_folder, require_given_policy, tiny_folder


def check_policy(config: RunConfig) -> tuple[Finding, int]:
    """The policy's folder, and its parameters; 0 for a tiny one that is not built yet."""
    try:
        require_given_policy(config)
        folder = local_folder(config) if config.policy.path else tiny_folder(config)
        if folder is None:
            return Finding("policy", Level.NOTE, f"{config.policy.path}, downloaded when a run starts"), 0
        parameters = count_parameters(folder)
    except (ConfigError, PolicyFilesError, OSError) as error:
        return Finding("policy", Level.FAILED, on_one_line(error)), 0
    if not config.policy.path and not folder.is_dir():
        return Finding("policy", Level.OK, "the tiny policy, built when a run starts"), 0
    return Finding("policy", Level.OK, f"{folder} ({parameters / 1e6:.1f} M parameters)"), parameters
