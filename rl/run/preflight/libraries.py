"""Libraries of the system that a run needs: `dynframe check` and `dynframe doctor` ask alike. Imports nothing heavy."""

from __future__ import annotations

from rl.config.installation import missing_library
from rl.run.preflight.findings import Finding, Level


def check_libraries() -> list[Finding]:
    """What is missing, and how it is installed; empty where nothing is."""
    return [Finding("libraries", Level.FAILED, missing)] if (missing := missing_library()) else []
