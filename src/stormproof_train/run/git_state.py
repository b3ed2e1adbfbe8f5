"""Which code a run was started with."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

TIMEOUT_SECONDS = 10.0
"""How long git may look, as on a slow network file system."""
_DIRTY_SUFFIX = "-dirty"


@dataclass(frozen=True)
class GitState:
    """A commit, and whether files that git tracks had been changed since."""

    commit: str
    dirty: bool


def read_git_state() -> GitState | None:
    """That of the repository around the working directory; None where there is none, no commit, or no git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", f"--dirty={_DIRTY_SUFFIX}"]
    try:
        description = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return GitState(description.removesuffix(_DIRTY_SUFFIX), description.endswith(_DIRTY_SUFFIX))
